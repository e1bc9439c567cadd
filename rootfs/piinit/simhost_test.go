package piinit

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"portcullis/hardware"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
	"portcullis/images/gpt"
	"portcullis/images/luks2"
	"portcullis/images/verity"
	"portcullis/rootfs/boot"
)

// host is the Host of a simulated Pi.
type host struct {
	r       *recorder
	chip    *chip // nil: none
	zymkey  hardware.Root
	systemd []byte // passphrase of a systemd-tpm2 token
	space   *space
	twice   bool // another card appears with the last driver
	early   bool // something was written before all drivers were loaded
}

func (h *host) Settled(context.Context) error {
	h.early = len(h.r.events) > 0
	if h.twice {
		return boot.Failf(boot.ReasonCardTwice, "two cards")
	}
	return nil
}

func (h *host) Card(context.Context) (Card, error) { return &simCard{h.r}, nil }

func (h *host) TPM(_ context.Context, config tpm2.Config) (TPM, error) {
	if h.chip == nil {
		return nil, chipError(hardware.ReasonAbsent, "no device")
	}
	h.chip.config = config
	return h.chip, nil
}

func (h *host) Zymbit(context.Context, *card.ZymbitState) (hardware.Root, error) {
	if h.zymkey == nil {
		return nil, chipError(hardware.ReasonAbsent, "no tools in this image")
	}
	return h.zymkey, nil
}

func (h *host) SystemdToken(context.Context, []byte) ([]byte, error) {
	if h.systemd == nil {
		return nil, chipError(hardware.ReasonAbsent, "no token of systemd is expected")
	}
	return h.systemd, nil
}

func (h *host) Map(header *luks2.Header, key []byte) (Space, error) {
	d, err := (&simCard{h.r}).Partition(card.PartCrypt)
	if err != nil {
		return nil, err
	}
	p, err := header.Payload(d, key)
	if err != nil {
		return nil, err
	}
	h.space = &space{payload: p, d: d}
	return h.space, nil
}

type simCard struct{ r *recorder }

func (c *simCard) Size() int64 { return c.r.size }
func (c *simCard) Table() (*gpt.Table, gpt.Health, error) {
	return gpt.Read(c.r, uint64(c.r.size/card.SectorSize))
}
func (c *simCard) WriteTable(_ context.Context, t *gpt.Table) error { return t.Write(c.r) }
func (c *simCard) Partition(n int) (Disk, error) {
	t, _, err := c.Table()
	if err != nil {
		return nil, err
	}
	for _, p := range t.Partitions {
		if p.Number == n {
			return &section{c.r, p.Offset(), p.Size()}, nil
		}
	}
	return nil, fmt.Errorf("no partition %d", n)
}

// space is the inside of the volume.
type space struct {
	payload *luks2.Payload
	d       Disk
	verity  io.ReaderAt
	mounted bool
}

// window is a stretch of the payload.
type window struct {
	s         *space
	off, size int64
}

func (w *window) ReadAt(p []byte, off int64) (int, error)  { return w.s.payload.ReadAt(p, w.off+off) }
func (w *window) WriteAt(p []byte, off int64) (int, error) { return w.s.payload.WriteAt(p, w.off+off) }
func (w *window) Sync() error                              { return w.s.d.Sync() }
func (w *window) Size() int64                              { return w.size }

func (s *space) System(slot card.Slot) Disk {
	if slot == card.SlotB {
		return &window{s, card.SystemSize, card.SystemSize}
	}
	return &window{s, 0, card.SystemSize}
}

func (s *space) Data() Disk {
	return &window{s, 2 * card.SystemSize, s.payload.Size() - 2*card.SystemSize}
}

// verified refuses every read where the slot is not what was signed.
type verified struct {
	io.ReaderAt
	err error
}

func (v *verified) ReadAt(p []byte, off int64) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	return v.ReaderAt.ReadAt(p, off)
}

func (s *space) OpenVerity(slot card.Slot, v boot.Verity) (io.ReaderAt, error) {
	d := s.System(slot)
	salt, err := hex.DecodeString(v.Salt)
	if err != nil {
		return nil, err
	}
	r := &verified{ReaderAt: d}
	tree, err := verity.Build(d, int64(v.DataBlocks)*boot.BlockSize, salt)
	if err != nil {
		return nil, err
	}
	stored := make([]byte, len(tree.Hashes))
	if _, err := d.ReadAt(stored, int64(v.HashStart)*boot.BlockSize); err != nil {
		return nil, err
	}
	if tree.Root() != v.RootHash || !bytes.Equal(stored, tree.Hashes) {
		r.err = errors.New("a block is not what was signed")
	}
	s.verity = r
	return r, nil
}

func (s *space) MountSystem() error {
	_, err := s.verity.ReadAt(make([]byte, boot.BlockSize), 0)
	return err
}

// simMagic stands for an ext4 superblock, which mkfs writes last.
var simMagic = []byte("a file system\n")

func (s *space) Format(context.Context, string) error {
	d := s.Data()
	for at := int64(64 << 10); at > 0; at -= 16 << 10 {
		if _, err := d.WriteAt(bytes.Repeat([]byte{7}, 16<<10), at); err != nil {
			return err
		}
	}
	if _, err := d.WriteAt(simMagic, 1024); err != nil {
		return err
	}
	return d.Sync()
}

func (s *space) Check(context.Context) (bool, error) {
	b := make([]byte, len(simMagic))
	if _, err := s.Data().ReadAt(b, 1024); err != nil || !bytes.Equal(b, simMagic) {
		return false, fmt.Errorf("no file system (%v)", err)
	}
	return false, nil
}

func (s *space) MountData() error { s.mounted = true; return nil }
