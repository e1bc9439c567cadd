package piinit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"testing"

	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
	"portcullis/images/verity"
)

// signer makes releases: their keys, systems and cards.
type signer struct {
	policy  *ecdsa.PrivateKey
	release ed25519.PublicKey
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{k, pub}
}

// built is one release.
type built struct {
	info    *card.Info
	cmdline string
	root    []byte // root.img
	boot    map[string][]byte
	release card.Release
}

const simNVIndex = 0x01800077

func (s *signer) build(t testing.TB, sequence uint64) *built {
	t.Helper()
	data := make([]byte, 300*verity.BlockSize) // three levels of hashes would need more; two are enough here
	rand.Read(data)
	salt := make([]byte, 32)
	rand.Read(salt)
	tree, err := verity.Build(bytes.NewReader(data), int64(len(data)), salt)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&s.policy.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b := &built{
		info: &card.Info{Schema: card.InfoSchema, Model: card.ModelQEMU, Profile: card.ProfileDev, Sequence: sequence,
			ReleaseKeys: [][]byte{s.release}, Threshold: 1, PolicyKey: der, NVIndex: simNVIndex},
		cmdline: fmt.Sprintf("%s roothash=%s portcullis.verity=%s,%d,%d console=ttyAMA0", card.CmdlineMark, tree.Root(), hex.EncodeToString(salt), tree.DataBlocks, tree.DataBlocks),
		root:    append(data, tree.Hashes...),
		release: card.Release{Sequence: sequence, Root: tree.RootHash},
	}
	b.boot = map[string][]byte{card.KernelFile: []byte("kernel"), card.InitramfsFile: fmt.Appendf(nil, "initramfs %d", sequence), card.CmdlineFile: []byte(b.cmdline)}
	s.sign(t, b)
	return b
}

// sign makes policy.json for both platforms.
func (s *signer) sign(t testing.TB, b *built) {
	t.Helper()
	self := tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(card.MeasuredDigest(b.boot), b.cmdline)...)
	efi := tpmpolicy.Predict(map[int][32]byte{card.PCRPhase: {1}, 12: {2}}, tpmpolicy.Event{PCR: card.PCRPhase, Data: []byte(card.PhaseEnter)})
	f := &tpmpolicy.File{Version: tpmpolicy.FileVersion, Sequence: b.info.Sequence}
	for p, pcrs := range map[tpmpolicy.Platform]map[int][32]byte{tpmpolicy.PlatformSelf: self, tpmpolicy.PlatformEFI: efi} {
		signed, err := tpmpolicy.Sign(s.policy, tpmpolicy.Branch{Platform: p, Sequence: b.info.Sequence, PCRs: pcrs, NVIndex: simNVIndex})
		if err != nil {
			t.Fatal(err)
		}
		f.Branches = append(f.Branches, signed)
	}
	text, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.boot[card.PolicyFile] = text
}

// simCardSize is the size of a simulated card: two systems and some data.
const simCardSize = 1600 << 20

// flashed is a card with a release as an image leaves it, then grown to its size,
// with the operator's settings when seed is not empty.
func flashed(t testing.TB, b *built, seed string) *medium {
	t.Helper()
	m := &medium{size: simCardSize, blocks: map[int64][]byte{}}
	conf, err := card.ConfFiles(b.release)
	if err != nil {
		t.Fatal(err)
	}
	if seed != "" {
		if conf[card.SeedFile], err = card.SeedImage("seed", []byte(seed)); err != nil {
			t.Fatal(err)
		}
	}
	table := &gpt.Table{DiskID: gpt.FromBytes([16]byte{1})}
	at := int64(card.Align)
	for i, p := range []struct {
		name  string
		size  int64
		files map[string][]byte
	}{
		{card.LabelConf, card.ConfSize, conf}, {card.LabelBootA, card.BootSize, b.boot}, {card.LabelBootB, card.BootSize, map[string][]byte{}},
		{card.LabelSeed, (int64(len(b.root)) + card.Align - 1) / card.Align * card.Align, nil}, {card.LabelCrypt, card.CryptHeader, nil},
	} {
		table.Partitions = append(table.Partitions, gpt.Partition{Number: i + 1, Name: p.name, Type: gpt.TypeLinux, ID: gpt.FromBytes([16]byte{2, byte(i)}),
			First: uint64(at / card.SectorSize), Last: uint64((at+p.size)/card.SectorSize) - 1})
		part := &section{&recorder{medium: m, chip: newChip()}, at, p.size}
		if p.files != nil {
			if err := fat.Build(part, fat.Options{Size: p.size, Label: p.name}, p.files); err != nil {
				t.Fatal(err)
			}
		}
		if p.name == card.LabelSeed {
			part.WriteAt(b.root, 0)
		}
		at += p.size
	}
	table.Sectors = uint64((at + card.Align) / card.SectorSize)
	if err := table.Write(m); err != nil {
		t.Fatal(err)
	}
	return m
}
