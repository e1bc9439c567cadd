// Package flashtest makes small images of a card for tests: a partition table, a
// configuration partition with its files, noise in the others.
package flashtest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"portcullis/images/blockmap"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
)

const mib = 1 << 20

// Image is what New made.
type Image struct {
	Path string // pi.img.zst, with pi.blockmap.json beside it
	Key  string // file with the public key that signed it
	Raw  []byte
	Map  *blockmap.Map
}

// Size of the raw image in bytes.
const Size = 72 * mib

// Noise is n bytes that do not compress.
func Noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = mrand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// Layout is the partition table of the image.
func Layout() *gpt.Table {
	t := &gpt.Table{DiskID: gpt.FromBytes([16]byte{0xD1}), Sectors: Size / card.SectorSize}
	at := int64(card.Align)
	for i, p := range []struct {
		name string
		kind gpt.GUID
		size int64
	}{
		{card.LabelConf, gpt.TypeBasicData, 16 * mib}, {card.LabelBootA, gpt.TypeBasicData, 12 * mib}, {card.LabelBootB, gpt.TypeBasicData, 12 * mib},
		{card.LabelSeed, gpt.TypeLinux, 14 * mib}, {card.LabelCrypt, gpt.TypeLUKS, 16 * mib},
	} {
		first := uint64(at / card.SectorSize)
		at += p.size
		t.Partitions = append(t.Partitions, gpt.Partition{
			Number: i + 1, Name: p.name, Type: p.kind, ID: gpt.FromBytes([16]byte{byte(i + 1)}), First: first, Last: uint64(at/card.SectorSize) - 1,
		})
	}
	return t
}

// New makes an image in a directory of the test's own.
func New(t testing.TB) *Image {
	t.Helper()
	raw := make(memory, Size)
	table := Layout()
	if err := table.Write(raw); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		card.AutobootFile: bytes.Repeat([]byte("\n"), card.AutobootSize), card.StateFile: Noise(1, card.StateSize),
		card.SeedFile: bytes.Repeat([]byte("\n"), card.SeedSize), card.EscrowFile: bytes.Repeat([]byte("\n"), card.EscrowSize),
		card.EnrolFile: bytes.Repeat([]byte("\n"), card.EnrolSize), card.ZymbitFile: make([]byte, card.ZymbitSize),
	}
	build := func(number int, label string, files map[string][]byte) {
		p := table.Partitions[number-1]
		if err := fat.Build(raw[p.Offset():p.Offset()+p.Size()], fat.Options{Size: p.Size(), Label: label}, files); err != nil {
			t.Fatal(err)
		}
	}
	build(card.PartConf, card.LabelConf, files)
	build(card.PartBootA, card.LabelBootA, map[string][]byte{card.KernelFile: Noise(2, 8*mib)})
	build(card.PartBootB, card.LabelBootB, nil)
	copy(raw[table.Partitions[card.PartSeed-1].Offset():], Noise(3, 13*mib))
	return Pack(t, raw)
}

// Pack compresses and signs a raw image.
func Pack(t testing.TB, raw []byte) *Image {
	t.Helper()
	dir := t.TempDir()
	i := &Image{Path: filepath.Join(dir, "pi.img.zst"), Key: filepath.Join(dir, "release.pub"), Raw: raw}
	var out bytes.Buffer
	var err error
	if i.Map, err = blockmap.Pack(&out, bytes.NewReader(raw), int64(len(raw)), "portcullis qemu dev 1", nil); err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := i.Map.Sign(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{
		i.Path: out.Bytes(), filepath.Join(dir, "pi.blockmap.json"): signed,
		i.Key: []byte(base64.StdEncoding.EncodeToString(public) + "\n"),
	} {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

type memory []byte

func (m memory) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }
