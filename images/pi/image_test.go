package pi

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"portcullis/hardware/tpmpolicy"
	"portcullis/images/blockmap"
	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/gpt"
	"portcullis/images/manifest"
	"portcullis/rootfs/boot"
)

// The tests below build real images. The packages are fetched once into the
// default cache; on a machine without squashfs-tools, kmod, device-tree-compiler
// or the Debian archive's keyring they fail and say what to install.

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantReason(t *testing.T, err error, want debroot.Reason) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Fatalf("got %v, want reason %s", err, want)
	}
}

func newKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := GenerateKeys(filepath.Join(t.TempDir(), "release"))
	must(t, err)
	return k
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func options(t *testing.T, model, profile string, k *Keys) Options {
	t.Helper()
	return Options{Model: model, Profile: profile, Keys: k, OutDir: t.TempDir(), Bin: programs(t), Progress: debroot.NewReporter(testWriter{t}, false)}
}

// programs compiles the Pi's programs once for all tests of this run.
func programs(t *testing.T) string {
	t.Helper()
	compiled.Do(func() {
		if compiledIn, compileErr = os.MkdirTemp("", "portcullis-test-"); compileErr != nil {
			return
		}
		var m *debroot.Maker
		if m, compileErr = debroot.NewMaker(compiledIn, nil, false); compileErr == nil {
			b := &builder{o: Options{Model: card.ModelQEMU, Profile: card.ProfileDev}, m: m}
			compileErr = b.compile(context.Background())
		}
	})
	must(t, compileErr)
	return filepath.Join(compiledIn, "bin", arch)
}

var (
	compiled   sync.Once
	compiledIn string
	compileErr error
)

func TestMain(m *testing.M) {
	code := m.Run()
	if compiledIn != "" {
		os.RemoveAll(compiledIn)
	}
	os.Exit(code)
}

func build(t *testing.T, o Options) *Result {
	t.Helper()
	r, err := Build(t.Context(), o)
	must(t, err)
	return r
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

// flashed unpacks the card of an image.
func flashed(t *testing.T, dir string) *os.File {
	t.Helper()
	in, err := os.Open(filepath.Join(dir, CardFile))
	must(t, err)
	defer in.Close()
	d, err := zstd.NewReader(in)
	must(t, err)
	defer d.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "card"))
	must(t, err)
	t.Cleanup(func() { out.Close() })
	_, err = io.Copy(out, d)
	must(t, err)
	return out
}

func partition(t *testing.T, f *os.File, name string) *io.SectionReader {
	t.Helper()
	st, err := f.Stat()
	must(t, err)
	table, health, err := gpt.Read(f, uint64(st.Size()/card.SectorSize))
	must(t, err)
	if !health.OK() {
		t.Fatalf("partition table: %s", health)
	}
	p, err := table.ByName(name)
	must(t, err)
	return io.NewSectionReader(f, p.Offset(), p.Size())
}

// fatFiles reads all files of a FAT file system.
func fatFiles(t *testing.T, r io.ReaderAt, size int64) map[string][]byte {
	t.Helper()
	files, err := volumeFiles(r, size)
	must(t, err)
	return files
}

func TestImageForQEMU(t *testing.T) {
	keys := newKeys(t)
	o := options(t, card.ModelQEMU, card.ProfileDev, keys)
	r := build(t, o)
	if !r.LabChannel {
		t.Error("a dev image for QEMU has the lab's channel")
	}
	disk := flashed(t, o.OutDir)
	t.Run("card", func(t *testing.T) { cardTest(t, disk, r) })
	t.Run("boot files", func(t *testing.T) { bootTest(t, disk, r, keys) })
	t.Run("signatures", func(t *testing.T) { signatureTest(t, disk, o.OutDir, r, keys) })
	t.Run("bill of materials", func(t *testing.T) { sbomTest(t, o.OutDir, r) })
	t.Run("same inputs, same bytes", func(t *testing.T) {
		again := options(t, card.ModelQEMU, card.ProfileDev, keys)
		again.CacheDir = secondCache(t)
		if s := build(t, again); fmt.Sprint(s.Summary) != fmt.Sprint(r.Summary) {
			t.Errorf("two builds of the same inputs:\n%+v\n%+v", r.Summary, s.Summary)
		}
		for _, name := range publicFiles {
			a, err := debroot.DigestFile(filepath.Join(o.OutDir, name))
			must(t, err)
			b, err := debroot.DigestFile(filepath.Join(again.OutDir, name))
			must(t, err)
			if a != b {
				t.Errorf("%s differs between two builds of the same inputs", name)
			}
		}
	})
	t.Run("found again", func(t *testing.T) {
		if again := build(t, options(t, card.ModelQEMU, card.ProfileDev, keys)); !again.Cached {
			t.Error("the second build made something")
		}
	})
	t.Run("the next release", func(t *testing.T) {
		next := options(t, card.ModelQEMU, card.ProfileDev, keys)
		next.Sequence = 2
		s := build(t, next)
		if s.RootHash != r.RootHash || s.BootDigest == r.BootDigest || s.Sequence != 2 {
			t.Errorf("root hash %t, boot files %t the same, sequence %d", s.RootHash == r.RootHash, s.BootDigest == r.BootDigest, s.Sequence)
		}
	})
	t.Run("verify", func(t *testing.T) { verifyTest(t, o.OutDir, keys) })
}

func cardTest(t *testing.T, disk *os.File, r *Result) {
	st, err := disk.Stat()
	must(t, err)
	table, _, err := gpt.Read(disk, uint64(st.Size()/card.SectorSize))
	must(t, err)
	for i, want := range []string{card.LabelConf, card.LabelBootA, card.LabelBootB, card.LabelSeed, card.LabelCrypt} {
		if p := table.Partitions[i]; p.Name != want || p.Number != i+1 || p.Offset()%card.Align != 0 {
			t.Errorf("partition %d: %+v", i+1, p)
		}
	}
	conf, err := os.OpenFile(disk.Name(), os.O_RDWR, 0)
	must(t, err)
	defer conf.Close()
	p := table.Partitions[0]
	c, err := card.OpenConf(section{conf, p.Offset()}, p.Size())
	must(t, err)
	state, err := c.State()
	must(t, err)
	if state.Active.Slot != card.SlotA || state.Active.Sequence != 1 || hex.EncodeToString(state.Active.Root[:]) != r.RootHash || state.Trial != nil {
		t.Errorf("state %+v", state)
	}
	auto, err := c.Autoboot()
	must(t, err)
	if auto.Boot(false) != card.PartBootA || auto.Boot(true) != card.PartBootB {
		t.Errorf("autoboot %+v", auto)
	}
	text, err := c.SeedText()
	must(t, err)
	if !card.BlankSeed(text) {
		t.Error("the settings are not empty")
	}
	if files := fatFiles(t, partition(t, disk, card.LabelBootB), card.BootSize); len(files) != 0 {
		t.Errorf("slot B has files")
	}
	crypt := partition(t, disk, card.LabelCrypt)
	b, err := io.ReadAll(crypt)
	must(t, err)
	if int64(len(b)) != card.CryptHeader || !blockmap.Zero(b) {
		t.Errorf("%d bytes for the encrypted partition, not all zero", len(b))
	}
	seed := partition(t, disk, card.LabelSeed)
	sum := sha256.New()
	_, err = io.CopyN(sum, seed, r.Sizes[bundle.Root])
	must(t, err)
	if hex.EncodeToString(sum.Sum(nil)) != r.SHA256[bundle.Root] {
		t.Error("the seed is not the root image")
	}
	if r.Sizes[bundle.Root] > card.SystemSize {
		t.Error("the root image does not fit into a system slot")
	}
}

type section struct {
	*os.File
	at int64
}

func (s section) ReadAt(b []byte, off int64) (int, error)  { return s.File.ReadAt(b, s.at+off) }
func (s section) WriteAt(b []byte, off int64) (int, error) { return s.File.WriteAt(b, s.at+off) }

func bootTest(t *testing.T, disk *os.File, r *Result, keys *Keys) {
	files := fatFiles(t, partition(t, disk, card.LabelBootA), card.BootSize)
	for _, name := range []string{card.KernelFile, card.InitramfsFile, card.CmdlineFile, card.PolicyFile, card.UKIFile} {
		if len(files[name]) == 0 {
			t.Errorf("no %s", name)
		}
		loose, err := os.ReadFile(filepath.Join(r.Dir, BootDir, name))
		if err != nil || !bytes.Equal(loose, files[name]) {
			t.Errorf("%s on the card and loose differ: %v", name, err)
		}
	}
	line, err := card.Cmdline(string(files[card.CmdlineFile]))
	if err != nil || line != r.Cmdline {
		t.Errorf("%q, %v", line, err)
	}
	want := regexp.MustCompile(`^portcullis\.pi=1 portcullis\.release=[0-9]+ roothash=[0-9a-f]{64} portcullis\.verity=[0-9a-f]{64},[0-9]+,[0-9]+ lockdown=integrity module\.sig_enforce=1 init_on_free=1 panic=10 net\.ifnames=0 loglevel=4 systemd\.show_status=0 console=ttyAMA0$`)
	if !want.MatchString(line) {
		t.Errorf("command line %q", line)
	}
	if v, err := boot.ParseVerity(line); err != nil || v.RootHash != r.RootHash {
		t.Errorf("%+v, %v", v, err)
	}
	infoText, err := debroot.ReadInitrd(files[card.InitramfsFile], card.InfoPath)
	must(t, err)
	info, err := card.ParseInfo(infoText)
	must(t, err)
	if info.Sequence != 1 || info.Model != card.ModelQEMU || !info.LabChannel || !bytes.Equal(info.ReleaseKeys[0], keys.Public()) || info.NVIndex != DefaultNVIndex {
		t.Errorf("%+v", info)
	}
	modulesTest(t, files, "softdog", "virtio_blk tpm_tis dm-crypt dm-verity squashfs xts", "overlay")
	policyTest(t, files, info)
}

// The policies bless exactly these files.
func policyTest(t *testing.T, files map[string][]byte, info *card.Info) {
	p, err := tpmpolicy.Parse(files[card.PolicyFile])
	must(t, err)
	key, err := info.Policy()
	must(t, err)
	for _, b := range p.Branches {
		if err := b.Verify(key); err != nil {
			t.Error(err)
		}
	}
	line, err := card.Cmdline(string(files[card.CmdlineFile]))
	must(t, err)
	self := p.Branch(tpmpolicy.PlatformSelf)
	want := tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(card.MeasuredDigest(files), line)...)
	if self == nil || fmt.Sprint(self.PCRs) != fmt.Sprint(want) {
		t.Errorf("platform self: %v, want %v", self, want)
	}
	efi := p.Branch(tpmpolicy.PlatformEFI)
	if _, isUKI := files[card.UKIFile]; (efi != nil) != isUKI {
		t.Errorf("platform efi: %v", efi)
	}
	if efi != nil && (len(efi.PCRs) != 3 || efi.PCRs[4] == [32]byte{} || efi.PCRs[9] == [32]byte{} || efi.PCRs[11] == self.PCRs[11]) {
		t.Errorf("platform efi: %v", efi.PCRs)
	}
}

func signatureTest(t *testing.T, disk *os.File, dir string, r *Result, keys *Keys) {
	trust := manifest.Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{keys.Public()}}
	data, err := os.ReadFile(filepath.Join(dir, BlockMapFile))
	must(t, err)
	m, err := blockmap.Open(data, trust)
	must(t, err)
	st, err := disk.Stat()
	must(t, err)
	if m.Size != st.Size() || m.Compressed.SHA256.String() != r.SHA256[CardFile] {
		t.Errorf("map of %d bytes, card of %d", m.Size, st.Size())
	}
	f, err := os.Open(filepath.Join(dir, BundleFile))
	must(t, err)
	defer f.Close()
	u, err := bundle.Open(f, trust)
	must(t, err)
	if u.Manifest.BootDigest != r.BootDigest || u.Manifest.Verity.RootHash != r.RootHash || u.Manifest.Cmdline != r.Cmdline || !u.Manifest.LabChannel {
		t.Errorf("%+v", u.Manifest)
	}
	a := partition(t, disk, card.LabelBootA)
	must(t, u.Copy(bundle.Boot, func(offset int64, piece []byte) error {
		have := make([]byte, len(piece))
		if _, err := a.ReadAt(have, offset); err != nil || !bytes.Equal(have, piece) {
			return fmt.Errorf("boot partition differs at %d (%v)", offset, err)
		}
		return nil
	}))
}
