// Package bundletest makes small updates for tests: a boot partition that is
// mostly empty and a system of a few blocks, different for every sequence.
package bundletest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"testing"

	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/manifest"
	"portcullis/images/verity"
)

// Key signs, and Trust believes it.
type Key struct {
	Signer ed25519.PrivateKey
	Trust  manifest.Trust
}

// NewKey makes a key.
func NewKey(t testing.TB) Key {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Key{private, manifest.Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{public}}}
}

// dataBlocks is the size of a system before its tree, in blocks of 4096 bytes.
const dataBlocks = 600

// RootImage is the system of a release with its tree.
func RootImage(sequence uint64) []byte {
	data := make([]byte, dataBlocks*verity.BlockSize)
	for i := range dataBlocks {
		copy(data[i*verity.BlockSize:], fmt.Sprintf("release %d block %d", sequence, i))
	}
	return append(data, tree(data).Hashes...)
}

func tree(data []byte) *verity.Tree {
	t, err := verity.Build(bytes.NewReader(data), int64(len(data)), []byte("saltsalt"))
	if err != nil {
		panic(err) // the data is ours
	}
	return t
}

// BootImage is the boot partition of a release.
func BootImage(sequence uint64) *io.SectionReader {
	return io.NewSectionReader(sparse(bytes.Repeat(fmt.Appendf(nil, "boot partition of release %d\n", sequence), 1000)), 0, card.BootSize)
}

// sparse is a beginning and then zeros.
type sparse []byte

// ReadAt reads them.
func (s sparse) ReadAt(b []byte, at int64) (int, error) {
	clear(b)
	if at < int64(len(s)) {
		copy(b, s[at:])
	}
	return len(b), nil
}

// Release is how the slot state calls a release.
func Release(sequence uint64) card.Release {
	return card.Release{Sequence: sequence, Root: tree(RootImage(sequence)[:dataBlocks*verity.BlockSize]).RootHash}
}

// Manifest describes a release for the dev profile of model qemu.
func Manifest(sequence uint64) bundle.Manifest {
	r := Release(sequence)
	v := manifest.Verity{RootHash: hex.EncodeToString(r.Root[:]), Salt: hex.EncodeToString([]byte("saltsalt")), DataBlocks: dataBlocks, HashStart: dataBlocks}
	digest := strings.Repeat("ab", 32)
	return bundle.Manifest{
		Model: card.ModelQEMU, Profile: card.ProfileDev, Sequence: sequence, Kernel: "6.12.48+deb13-arm64",
		Cmdline: fmt.Sprintf("%s %s roothash=%s portcullis.verity=%s,%d,%d console=ttyAMA0", card.CmdlineMark, card.ReleaseWord(sequence), v.RootHash, v.Salt, v.DataBlocks, v.HashStart),
		Verity:  v, BootDigest: digest, Policy: digest, Packages: digest,
	}
}

// Bundle is a signed update; change may be nil.
func (k Key) Bundle(t testing.TB, sequence uint64, change func(*bundle.Manifest)) []byte {
	t.Helper()
	m := Manifest(sequence)
	if change != nil {
		change(&m)
	}
	var b bytes.Buffer
	if _, err := bundle.Write(&b, m, BootImage(sequence), bytes.NewReader(RootImage(sequence)), k.Signer); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
