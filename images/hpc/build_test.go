package hpc

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/manifest"
	"portcullis/images/recipe"
)

// The tests below build real images. The packages are fetched once into the
// default cache; on a machine without squashfs-tools, kmod or the Debian
// archive's keyring they fail and say what to install.

func testKey(t testing.TB, n byte) ed25519.PrivateKey {
	t.Helper()
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func signers(keys ...ed25519.PrivateKey) []crypto.Signer {
	var out []crypto.Signer
	for _, k := range keys {
		out = append(out, k)
	}
	return out
}

func labOptions(t *testing.T, out string) Options {
	t.Helper()
	return Options{
		Profile: manifest.ProfileLab, Signers: signers(testKey(t, 1)), GatewayKey: publicKey(testKey(t, 2)), OutDir: out,
		Binaries: programs(t), Progress: NewReporter(testWriter{t}, false),
	}
}

// programs compiles the PC's programs once for all tests of this run.
func programs(t *testing.T) Binaries {
	t.Helper()
	compiled.Do(func() {
		var dir string
		if dir, compileErr = os.MkdirTemp("", "portcullis-test-"); compileErr != nil {
			return
		}
		var m *debroot.Maker
		if m, compileErr = debroot.NewMaker(dir, nil, false); compileErr != nil {
			return
		}
		b := &builder{Options: Options{Profile: manifest.ProfileLab}, Maker: m}
		compileErr = b.programs(context.Background())
		binaries = b.Binaries
	})
	must(t, compileErr)
	return binaries
}

var (
	compiled   sync.Once
	compileErr error
	binaries   Binaries
)

func TestMain(m *testing.M) {
	code := m.Run()
	if binaries.Init != "" {
		os.RemoveAll(filepath.Dir(filepath.Dir(filepath.Dir(binaries.Init))))
	}
	os.Exit(code)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func build(t *testing.T, o Options) *Result {
	t.Helper()
	r, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var allFiles = []string{manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root, manifest.Envelope, TrustFile}

func digests(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range allFiles {
		d, err := debroot.DigestFile(filepath.Join(dir, name))
		must(t, err)
		out[name] = d
	}
	return out
}

// secondCache is a cache that shares the fetched packages only.
func secondCache(t *testing.T) string {
	t.Helper()
	first, err := debroot.DefaultCache()
	must(t, err)
	dir := t.TempDir()
	for _, name := range []string{"deb", "lock"} {
		must(t, os.Symlink(filepath.Join(first, name), filepath.Join(dir, name)))
	}
	return dir
}

func TestLabImage(t *testing.T) {
	out := t.TempDir()
	r := build(t, labOptions(t, out))
	m := r.Manifest
	if !m.LabChannel || m.Profile != manifest.ProfileLab {
		t.Errorf("lab channel %t, profile %s", m.LabChannel, m.Profile)
	}
	for name, limit := range map[string]int64{manifest.UKI: 24 << 20, manifest.Root: 120 << 20} {
		if a, ok := m.Artefact(name); !ok || a.Size > limit {
			t.Errorf("%s has %d bytes, more than %d", name, a.Size, limit)
		}
	}

	t.Run("same inputs, same bytes", func(t *testing.T) {
		o := labOptions(t, t.TempDir())
		o.CacheDir = secondCache(t)
		build(t, o)
		a, b := digests(t, out), digests(t, o.OutDir)
		for _, name := range allFiles {
			if a[name] != b[name] {
				t.Errorf("%s differs between two builds of the same inputs", name)
			}
		}
	})
	t.Run("found again at once", func(t *testing.T) {
		again := build(t, labOptions(t, t.TempDir()))
		if !again.Cached || again.Took > 5*time.Second {
			t.Errorf("cached %t, took %s", again.Cached, again.Took)
		}
		t.Logf("second build took %s", again.Took)
	})
	t.Run("another gateway leaves the root alone", func(t *testing.T) {
		o := labOptions(t, t.TempDir())
		o.GatewayKey, o.Version = publicKey(testKey(t, 3)), 2
		other := build(t, o)
		a, b := digests(t, out), digests(t, o.OutDir)
		if a[manifest.Root] != b[manifest.Root] || a[manifest.Initrd] == b[manifest.Initrd] || a[manifest.UKI] == b[manifest.UKI] {
			t.Errorf("root %t, initrd %t, UKI %t the same", a[manifest.Root] == b[manifest.Root], a[manifest.Initrd] == b[manifest.Initrd], a[manifest.UKI] == b[manifest.UKI])
		}
		if other.Manifest.Version != 2 || other.Manifest.Verity != m.Verity {
			t.Error("version or root hash are not as expected")
		}
	})
	t.Run("two keys on two machines", func(t *testing.T) { cosignTest(t) })
	t.Run("verify", func(t *testing.T) { verifyTests(t, out, r) })
}

func cosignTest(t *testing.T) {
	o := labOptions(t, t.TempDir())
	second := testKey(t, 5)
	o.TrustKeys, o.Threshold = []ed25519.PublicKey{publicKey(second)}, 2
	build(t, o)
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	if rep := verify(o.OutDir, ""); rep.OK || rep.Reason != manifest.ReasonThreshold {
		t.Fatalf("one of two signatures: ok %t %s", rep.OK, rep.Reason)
	}
	_, err := Cosign(t.Context(), o.OutDir, testKey(t, 6), now)
	wantReason(t, err, debroot.ReasonOptions)
	flip(t, filepath.Join(o.OutDir, manifest.Root), 4096)
	_, err = Cosign(t.Context(), o.OutDir, second, now)
	wantReason(t, err, Reason(manifest.ReasonArtefact))
	flip(t, filepath.Join(o.OutDir, manifest.Root), 4096)
	r, err := Cosign(t.Context(), o.OutDir, second, now)
	if err != nil || r.Signatures != 2 || r.Threshold != 2 {
		t.Fatalf("%+v %v", r, err)
	}
	if rep := verify(o.OutDir, ""); !rep.OK {
		t.Fatalf("two of two signatures: %s %s", rep.Reason, rep.Detail)
	}
}

func verify(dir, trust string) *Report {
	return Verify(context.Background(), VerifyOptions{Dir: dir, TrustFile: trust, Now: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)})
}

func verifyTests(t *testing.T, dir string, r *Result) {
	if rep := verify(dir, filepath.Join(dir, TrustFile)); !rep.OK {
		t.Fatalf("a fresh image is refused: %s %s", rep.Reason, rep.Detail)
	}
	if rep := verify(t.TempDir(), ""); rep.OK || rep.Reason != string(ReasonRead) {
		t.Errorf("an empty directory: %+v", rep)
	}

	// One byte in any artefact, at its begin, in its middle and at its end.
	for _, name := range []string{manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root} {
		a, _ := r.Manifest.Artefact(name)
		for _, at := range []int64{0, a.Size / 2, a.Size - 1} {
			path := filepath.Join(dir, name)
			flip(t, path, at)
			rep := verify(dir, "")
			if rep.OK || rep.Reason != manifest.ReasonArtefact || !strings.Contains(rep.Detail, name) {
				t.Errorf("%s changed at byte %d: %s %s", name, at, rep.Reason, rep.Detail)
			}
			flip(t, path, at)
		}
	}

	// Somebody with the release key signs what is not so: each statement is recomputed.
	path := filepath.Join(dir, manifest.Envelope)
	good, err := os.ReadFile(path)
	must(t, err)
	zero := strings.Repeat("0", 64)
	for _, c := range []struct {
		name   string
		reason string
		change func(m *manifest.Manifest)
	}{
		{"another agent", string(debroot.ReasonRoot), func(m *manifest.Manifest) { m.Agent = zero }},
		{"a larger mask", string(debroot.ReasonRoot), func(m *manifest.Manifest) { m.Mask.Bytes++ }},
		{"no lab channel", string(debroot.ReasonLabInReal), func(m *manifest.Manifest) { m.LabChannel = false; m.Profile = manifest.ProfileGeneric }},
		{"another PCR 9", string(ReasonPCR), func(m *manifest.Manifest) { m.PCR["9"] = zero }},
		{"another PCR 11", string(ReasonPCR), func(m *manifest.Manifest) { m.PCR["11"] = zero }},
		{"another Authenticode digest", string(ReasonUKI), func(m *manifest.Manifest) { m.UKI.Authenticode = zero }},
		{"another root hash", string(ReasonVerity), func(m *manifest.Manifest) {
			m.Cmdline = strings.Replace(m.Cmdline, m.Verity.RootHash, zero, 1)
			m.Verity.RootHash = zero
		}},
		{"a word more on the command line", string(ReasonUKI), func(m *manifest.Manifest) { m.Cmdline += " quiet" }},
	} {
		m := r.Manifest
		m.PCR = map[string]string{}
		for k, v := range r.Manifest.PCR {
			m.PCR[k] = v
		}
		c.change(&m)
		envelope, err := manifest.Sign(m, testKey(t, 1))
		if err != nil {
			t.Errorf("%s: cannot be signed to begin with: %v", c.name, err)
			continue
		}
		must(t, os.WriteFile(path, envelope, 0o644))
		if rep := verify(dir, ""); rep.OK || rep.Reason != c.reason {
			t.Errorf("%s: ok %t, %s %s; want %s", c.name, rep.OK, rep.Reason, rep.Detail, c.reason)
		}
	}

	// A stranger's signature, and a gateway that the trust file does not know.
	envelope, err := manifest.Sign(r.Manifest, testKey(t, 9))
	must(t, err)
	must(t, os.WriteFile(path, envelope, 0o644))
	if rep := verify(dir, ""); rep.OK || rep.Reason != manifest.ReasonSignature {
		t.Errorf("a stranger's signature: %s %s", rep.Reason, rep.Detail)
	}
	must(t, os.WriteFile(path, good, 0o644))
	trust := manifest.Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{publicKey(testKey(t, 1))}, GatewayKey: publicKey(testKey(t, 7))}
	data, err := trust.Encode()
	must(t, err)
	file := filepath.Join(t.TempDir(), "trust.json")
	must(t, os.WriteFile(file, data, 0o644))
	if rep := verify(dir, file); rep.OK || rep.Reason != string(ReasonTrust) {
		t.Errorf("another gateway: %s %s", rep.Reason, rep.Detail)
	}
	if rep := verify(dir, ""); !rep.OK {
		t.Errorf("the image is not whole again: %s %s", rep.Reason, rep.Detail)
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	must(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b[:], at)
	must(t, err)
}

func TestGenericImage(t *testing.T) {
	o := labOptions(t, t.TempDir())
	o.Profile = manifest.ProfileGeneric
	r := build(t, o)
	if r.Manifest.LabChannel {
		t.Error("a generic image has a lab channel")
	}
	if a, _ := r.Manifest.Artefact(manifest.UKI); a.Size > 64<<20 {
		t.Errorf("the UKI has %d bytes", a.Size)
	}
	if rep := verify(o.OutDir, ""); !rep.OK {
		t.Errorf("%s %s", rep.Reason, rep.Detail)
	}
	data, err := os.ReadFile(filepath.Join(o.OutDir, manifest.Initrd))
	must(t, err)
	list, err := debroot.ReadInitrd(data, initrdModules)
	must(t, err)
	for _, m := range strings.Fields("e1000e igb igc r8169 tg3 bnxt_en ixgbe i40e ice mlx4_en mlx5_core virtio_net r8152 ax88179_178a asix cdc_ncm cdc_ether smsc95xx smsc75xx lan78xx") {
		if !strings.Contains(string(list), "/"+m+".ko\n") {
			t.Errorf("the initrd lacks the driver %s", m)
		}
	}
	for _, f := range []string{"lib/firmware/rtl_nic/rtl8168h-2.fw", "lib/firmware/tigon/tg3.bin", "lib/firmware/intel/ice/ddp/ice.pkg"} {
		if _, err := debroot.ReadInitrd(data, f); err != nil {
			t.Errorf("firmware: %v", err)
		}
	}
}

// A user's recipe cannot bring the lab's channel into a real image, and the
// build says so before it fetches anything.
func TestGenericBuildRefusesLabChannelOfUserRecipe(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "channel"), []byte("\x7fELF … org.portcullis.lab …"), 0o755))
	for name, text := range map[string]string{
		"its program under another name": "files:\n  - {path: /usr/bin/tool, source: channel, mode: '0755'}\n",
		"its unit":                       "files:\n  - {path: /etc/systemd/system/portcullis-lab.service, content: '[Service]'}\n",
		"a link to it":                   "links:\n  - {path: /usr/bin/tool, to: /usr/lib/portcullis/hpc-lab}\n",
		"its unit enabled":               "enable: [portcullis-lab.service]\n",
		"its path":                       "files:\n  - {path: /usr/lib/portcullis/hpc-lab, source: channel}\n",
		"its flag":                       "lab_channel: true\n",
	} {
		file := filepath.Join(dir, "mine.yaml")
		must(t, os.WriteFile(file, []byte("schema: "+recipe.Schema+"\nextends: hpc\n"+text), 0o644))
		o := labOptions(t, t.TempDir())
		o.Profile, o.Recipe, o.CacheDir = manifest.ProfileGeneric, file, t.TempDir()
		_, err := Build(t.Context(), o)
		var ours *Error
		var theirs *recipe.Error
		switch {
		case errors.As(err, &ours) && ours.Reason == debroot.ReasonLabInReal:
		case errors.As(err, &theirs) && theirs.Reason == recipe.ReasonReserved:
		default:
			t.Errorf("%s: got %v", name, err)
		}
		if entries, _ := os.ReadDir(o.OutDir); len(entries) != 0 {
			t.Errorf("%s: something was written", name)
		}
	}
}

func TestSummaryIsForMachines(t *testing.T) {
	r := &Result{Dir: "d", Manifest: manifest.Manifest{Image: "i", Artefacts: []manifest.Artefact{{Name: manifest.UKI, Size: 5}}}, Digest: [32]byte{1}}
	if s := r.Summary(); s.Sizes[manifest.UKI] != 5 || s.Digest != hex.EncodeToString(r.Digest[:]) {
		t.Errorf("%+v", s)
	}
}
