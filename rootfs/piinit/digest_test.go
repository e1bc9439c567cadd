package piinit

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/rootfs/boot"
)

// bootFAT is a boot partition with these files.
func bootFAT(t *testing.T, files map[string][]byte) *fat.FS {
	t.Helper()
	m := &medium{size: card.BootSize, blocks: map[int64][]byte{}}
	part := &section{&recorder{medium: m, chip: newChip()}, 0, card.BootSize}
	if err := fat.Build(part, fat.Options{Size: part.Size()}, files); err != nil {
		t.Fatal(err)
	}
	v, err := fat.Open(m, m.size)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestDigestIsThatOfTheBuilder: what is read from the card a piece at a time has
// the digest that the builder signed.
func TestDigestIsThatOfTheBuilder(t *testing.T) {
	big := bytes.Repeat([]byte("kernel"), 1<<19)
	for name, files := range map[string]map[string][]byte{
		"loose":    {card.KernelFile: big, card.CmdlineFile: []byte("x"), "EFI/BOOT/BOOTAA64.EFI": big[:70000], card.PolicyFile: []byte("{}"), "empty": nil},
		"boot.img": {card.BootImgFile: big, card.BootSigFile: []byte("sig"), card.ConfigFile: []byte("boot_ramdisk=1")},
		"nothing":  {},
	} {
		got, err := digestOf(t.Context(), bootFAT(t, files))
		if err != nil || got != card.MeasuredDigest(files) {
			t.Errorf("%s: %x, %v, the builder's is %x", name, got, err, card.MeasuredDigest(files))
		}
	}
}

func TestDigestThatNobodyWantsEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := digestOf(ctx, bootFAT(t, map[string][]byte{card.KernelFile: make([]byte, 1<<20)}))
	if !errors.Is(err, context.Canceled) || boot.ReasonOf(err) != ReasonBootFiles {
		t.Error(err)
	}
}

// TestAttackSecondCard: a card with the same labels that shows up later than the
// first one stops the boot, before anything was written to either.
func TestAttackSecondCard(t *testing.T) {
	_, seed := operator(t)
	p := newPi(t, newSigner(t).build(t, 3), seed)
	p.twice = true
	p.refused(string(boot.ReasonCardTwice))
	nothingWritten(t, p)
}
