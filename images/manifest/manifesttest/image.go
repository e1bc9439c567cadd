// Package manifesttest makes small valid images for tests: files that no PC
// boots, with a manifest that Open accepts. Only tests may call it.
package manifesttest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/manifest"
)

// Image is an image directory with the keys that made it.
type Image struct {
	Dir        string // holds every artefact, manifest.dsse and trust.json
	Manifest   manifest.Manifest
	Trust      manifest.Trust
	ReleaseKey ed25519.PrivateKey
	GatewayKey ed25519.PrivateKey
	Now        time.Time // inside the manifest's validity
}

// Key returns the Ed25519 key made from seed, the same one every time.
func Key(seed string) ed25519.PrivateKey {
	sum := sha256.Sum256([]byte(seed))
	return ed25519.NewKeyFromSeed(sum[:])
}

// Content returns size bytes that depend on name only.
func Content(name string, size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, i))
		b.Write(sum[:])
	}
	return b.Bytes()[:size]
}

// New writes an image into a directory of the test. The UKI has two chunks and
// a bit, the root image one and a bit; change, when not nil, edits the manifest
// before it is signed.
func New(t testing.TB, change func(*manifest.Manifest)) *Image {
	t.Helper()
	im := &Image{
		Dir:        t.TempDir(),
		Manifest:   Manifest(),
		ReleaseKey: Key("release key of the test"),
		GatewayKey: Key("gateway key of the test"),
	}
	im.Now = im.Manifest.NotBefore.Add(time.Hour)
	for _, a := range im.Manifest.Artefacts {
		im.write(t, a.Name, Content(a.Name, int(a.Size)))
	}
	if change != nil {
		change(&im.Manifest)
	}
	im.Trust = manifest.Trust{
		Threshold:   1,
		ReleaseKeys: []ed25519.PublicKey{im.ReleaseKey.Public().(ed25519.PublicKey)},
		GatewayKey:  im.GatewayKey.Public().(ed25519.PublicKey),
	}
	trust, err := im.Trust.Encode()
	if err != nil {
		t.Fatal(err)
	}
	im.write(t, "trust.json", trust)
	im.Sign(t)
	return im
}

// Sign writes the envelope of im.Manifest again, after a test has changed it.
func (im *Image) Sign(t testing.TB) {
	t.Helper()
	data, err := manifest.Sign(im.Manifest, im.ReleaseKey)
	if err != nil {
		t.Fatal(err)
	}
	im.write(t, manifest.Envelope, data)
}

func (im *Image) write(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(im.Dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Manifest returns the valid manifest of the image that New writes.
func Manifest() manifest.Manifest {
	digest := func(what string) string {
		sum := sha256.Sum256([]byte(what))
		return hex.EncodeToString(sum[:])
	}
	m := manifest.Manifest{
		Schema:     manifest.Schema,
		Image:      "hpc-test",
		Profile:    manifest.ProfileLab,
		LabChannel: true,
		Version:    7,
		NotBefore:  time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:   time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC),
		Verity:     manifest.Verity{RootHash: digest("root"), Salt: digest("salt"), DataBlocks: 250, HashStart: 250},
		UKI: manifest.UKIInfo{
			StubVersion:       "257.13-1~deb13u1",
			KernelVersion:     "6.12.1-cloud-amd64",
			Sections:          []manifest.Section{{Name: ".linux", Size: 1000, SHA256: digest(".linux")}, {Name: ".cmdline", Size: 100, SHA256: digest(".cmdline")}},
			Authenticode:      digest("authenticode"),
			LinuxAuthenticode: digest("linux authenticode"),
		},
		PCR:      map[string]string{"9": digest("9"), "11": digest("11"), "12": strings.Repeat("0", 64)},
		Agent:    digest("agent"),
		Mask:     manifest.KernelTextMask{Sites: 2, Bytes: 10, Total: 4096, SHA256: digest("mask")},
		Packages: []string{"base-files=13.8", "systemd=257.13-1~deb13u1"},
	}
	m.Cmdline = fmt.Sprintf("roothash=%s portcullis.verity=%s,%d,%d console=ttyS0", m.Verity.RootHash, m.Verity.Salt, m.Verity.DataBlocks, m.Verity.HashStart)
	for _, a := range []struct {
		name string
		size int
	}{
		{manifest.UKI, 2*manifest.ChunkSize + 4321},
		{manifest.Kernel, 5000},
		{manifest.Initrd, 70000},
		{manifest.Root, 260 * 4096},
	} {
		described, err := manifest.Describe(a.name, bytes.NewReader(Content(a.name, a.size)))
		if err != nil {
			panic(err) // a bytes.Reader does not fail
		}
		m.Artefacts = append(m.Artefacts, described)
	}
	return m
}
