package update

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// running is the card that this system was started from.
type running struct {
	partitions map[int]string // number → device node
}

// OpenRunning finds the card below the encrypted volume that is in use: not by
// labels, which a second card or a stranger's stick could carry as well.
func OpenRunning() (Card, error) {
	node, err := boot.MappedPath(card.MapperCrypt)
	if err != nil {
		return nil, refuse(ReasonNotPi, "%w", err)
	}
	below, err := os.ReadDir(filepath.Join(boot.SysBlock, filepath.Base(node), "slaves"))
	if err != nil || len(below) != 1 {
		return nil, refuse(ReasonNotPi, "%s lies on %d devices: %w", node, len(below), err)
	}
	disks, err := boot.Disks(boot.SysBlock)
	if err != nil {
		return nil, refuse(ReasonDevice, "%w", err)
	}
	for _, d := range disks {
		if filepath.Base(d.Partitions[card.PartCrypt]) == below[0].Name() {
			return running{d.Partitions}, nil
		}
	}
	return nil, refuse(ReasonNotPi, "%s is partition %d of no disk", below[0].Name(), card.PartCrypt)
}

// partitionLabels are what the kernel must have read in the partition table.
var partitionLabels = map[int]string{card.PartConf: card.LabelConf, card.PartBootA: card.LabelBootA, card.PartBootB: card.LabelBootB}

func (r running) partition(n, flags int) (Device, error) {
	node := r.partitions[n]
	if node == "" {
		return nil, refuse(ReasonDevice, "the card has no partition %d", n)
	}
	uevent, err := os.ReadFile(filepath.Join(boot.SysBlock, filepath.Base(node), "uevent"))
	if err != nil {
		return nil, refuse(ReasonDevice, "%w", err)
	}
	if !strings.Contains(string(uevent)+"\n", "\nPARTNAME="+partitionLabels[n]+"\n") {
		return nil, refuse(ReasonDevice, "partition %d is not %s", n, partitionLabels[n])
	}
	return openBlock(node, flags)
}

// Conf opens the configuration partition.
func (r running) Conf() (Device, error) { return r.partition(card.PartConf, 0) }

// Boot opens a slot's boot partition; it fails where something else has it open.
func (r running) Boot(s card.Slot) (Device, error) {
	return r.partition(s.BootPartition(), unix.O_EXCL)
}

// System opens a slot's system; it fails where something else has it open, as
// dm-verity has the one in use.
func (r running) System(s card.Slot) (Device, error) {
	name := card.MapperSystemA
	if s == card.SlotB {
		name = card.MapperSystemB
	}
	node, err := boot.MappedPath(name)
	if err != nil {
		return nil, refuse(ReasonDevice, "%w", err)
	}
	return openBlock(node, unix.O_EXCL)
}

// block is an open block device.
type block struct {
	*os.File
	size int64
}

func openBlock(path string, flags int) (Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0)
	if err != nil {
		return nil, refuse(ReasonDevice, "%w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, refuse(ReasonDevice, "%w", errors.Join(err, f.Close()))
	}
	return &block{f, size}, nil
}

func (b *block) Size() int64 { return b.size }

// Refresh drops what the kernel has cached of the device (BLKFLSBUF, linux/fs.h).
func (b *block) Refresh() error {
	if err := b.Sync(); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(b.Fd()), unix.BLKFLSBUF, 0)
}

// Lock keeps a second update or commit away until done is called.
func Lock(path string) (done func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, refuse(ReasonBusy, "%w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, refuse(ReasonBusy, "%s is locked by another update or commit: %w", path, errors.Join(err, f.Close()))
	}
	return func() { f.Close() }, nil
}
