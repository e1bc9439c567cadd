// Package artefacttest makes small signed images for the tests of pxe: the
// artefacts are random bytes, everything around them is real.
package artefacttest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/manifest"
)

// Image is an image on disk and the key that signed it.
type Image struct {
	Dir     string
	Key     ed25519.PrivateKey
	Content map[string][]byte
}

// Sizes of the artefacts in bytes: several chunks, and ends inside one.
var sizes = map[string]int{
	manifest.UKI: 3<<20 + 123, manifest.Kernel: 1<<20 + 7, manifest.Initrd: 900_001, manifest.Root: 5<<20 + 4096,
}

// New writes a valid image into a new directory. edit may change the manifest before it is signed.
func New(t testing.TB, edit func(*manifest.Manifest)) *Image {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &Image{Dir: t.TempDir(), Key: key, Content: map[string][]byte{}}
	for name, size := range sizes {
		b := make([]byte, size)
		rand.Read(b)
		i.Content[name] = b
		if err := os.WriteFile(filepath.Join(i.Dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	i.Sign(t, edit)
	return i
}

// Sign writes the manifest of what Content holds.
func (i *Image) Sign(t testing.TB, edit func(*manifest.Manifest)) {
	t.Helper()
	m := describe(t, i.Content)
	if edit != nil {
		edit(&m)
	}
	envelope, err := manifest.Sign(m, i.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(i.Dir, manifest.Envelope), envelope, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Trust accepts images signed with the key.
func (i *Image) Trust() manifest.Trust {
	return manifest.Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{i.Key.Public().(ed25519.PublicKey)}}
}

// ReleaseKey is the public key as it stands in the configuration.
func (i *Image) ReleaseKey() string {
	return base64.StdEncoding.EncodeToString(i.Key.Public().(ed25519.PublicKey))
}

// Flip changes one byte of an artefact on disk.
func (i *Image) Flip(t testing.TB, name string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(i.Dir, name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

func describe(t testing.TB, content map[string][]byte) manifest.Manifest {
	t.Helper()
	digest := strings.Repeat("ab", 32)
	blocks := uint64(len(content[manifest.Root]) / 4096)
	m := manifest.Manifest{
		Schema: manifest.Schema, Image: "test", Profile: manifest.ProfileLab, Version: 7,
		NotBefore: time.Now().Add(-time.Hour).UTC().Truncate(time.Second), NotAfter: time.Now().Add(24 * time.Hour).UTC().Truncate(time.Second),
		Verity: manifest.Verity{RootHash: digest, Salt: digest, DataBlocks: blocks - 2, HashStart: blocks - 2},
		UKI: manifest.UKIInfo{
			StubVersion: "257.7-1", KernelVersion: "6.12.0-amd64",
			Sections:     []manifest.Section{{Name: ".linux", Size: 1, SHA256: digest}},
			Authenticode: digest, LinuxAuthenticode: digest,
		},
		PCR:   map[string]string{"9": digest, "11": digest, "12": digest},
		Agent: digest, Mask: manifest.KernelTextMask{SHA256: digest, Total: 1},
		Packages: []string{"base-files=13.8"},
	}
	m.Cmdline = fmt.Sprintf("roothash=%s portcullis.verity=%s,%d,%d console=ttyS0", digest, digest, m.Verity.DataBlocks, m.Verity.HashStart)
	for _, name := range []string{manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root} {
		a, err := manifest.Describe(name, bytes.NewReader(content[name]))
		if err != nil {
			t.Fatal(err)
		}
		m.Artefacts = append(m.Artefacts, a)
	}
	return m
}
