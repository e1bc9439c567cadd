package boot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"portcullis/images/gpt"
)

// Reasons of this file.
const (
	ReasonCardMissing Reason = "card-missing" // no block device has the labels
	ReasonCardTwice   Reason = "card-twice"   // more than one has them: nothing tells which is meant
	ReasonBlock       Reason = "block-device" // a block device cannot be used
)

// SysBlock is where the kernel lists block devices.
const SysBlock = "/sys/class/block"

// devDir is where their nodes are; only a test has them elsewhere.
var devDir = "/dev"

// Disk is a whole block device.
type Disk struct {
	Name       string         // the kernel's, which says nothing about what is on it
	Path       string         // of the device node
	Sectors    uint64         // of 512 bytes
	Partitions map[int]string // number to device node, those the kernel has found
}

// Disks lists the whole block devices with hardware of their own below sys
// (SysBlock): no loop, RAM or device-mapper devices. Devices that go away meanwhile
// are left out.
func Disks(sys string) ([]Disk, error) {
	entries, err := os.ReadDir(sys)
	if err != nil {
		return nil, Failf(ReasonBlock, "%w", err)
	}
	var out []Disk
	for _, e := range entries {
		dir := filepath.Join(sys, e.Name())
		if exists(filepath.Join(dir, "partition")) || !exists(filepath.Join(dir, "device")) {
			continue
		}
		d, err := readDisk(dir, e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, Failf(ReasonBlock, "%s: %w", e.Name(), err)
		}
		if d.Sectors > 0 {
			out = append(out, d)
		}
	}
	return out, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readDisk(dir, name string) (Disk, error) {
	d := Disk{Name: name, Partitions: map[int]string{}}
	var err error
	if d.Path, err = deviceNode(dir); err != nil {
		return d, err
	}
	size, err := number(filepath.Join(dir, "size"))
	if err != nil {
		return d, err
	}
	d.Sectors = size
	// Partitions are directories below the disk's own.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return d, err
	}
	for _, e := range entries {
		n, err := number(filepath.Join(dir, e.Name(), "partition"))
		if err != nil {
			continue // something else that a disk has below it
		}
		if d.Partitions[int(n)], err = deviceNode(filepath.Join(dir, e.Name())); err != nil {
			return d, err
		}
	}
	return d, nil
}

func number(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 62)
}

// deviceNode takes the node's name from the device's uevent.
func deviceNode(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, "uevent"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "DEVNAME="); ok && filepath.IsLocal(name) {
			return filepath.Join(devDir, name), nil
		}
	}
	return "", fmt.Errorf("no DEVNAME in %s/uevent", dir)
}

// Card is a disk that was found by what is on it.
type Card struct {
	Disk
	Table  *gpt.Table
	Health gpt.Health
}

// pollEvery is how often the list of block devices is looked at: an SD card or a USB
// reader may need seconds after its driver was loaded, and is wanted at once then.
const pollEvery = 10 * time.Millisecond

// FindCard waits until exactly one disk below sys has partitions of all the labels,
// with the numbers given, in a readable GPT. It never goes by a device's name.
func FindCard(ctx context.Context, sys string, labels map[string]int) (*Card, error) {
	for {
		found, seen, err := cardsNow(sys, labels)
		if err != nil {
			return nil, err
		}
		if len(found) > 1 {
			return nil, Failf(ReasonCardTwice, "%s and %s carry the same labels: remove one", found[0].Name, found[1].Name)
		}
		if len(found) == 1 {
			return &found[0], nil
		}
		select {
		case <-ctx.Done():
			return nil, Failf(ReasonCardMissing, "no disk has the partitions of this image; looked at %s", strings.Join(seen, ", "))
		case <-time.After(pollEvery):
		}
	}
}

func cardsNow(sys string, labels map[string]int) (found []Card, seen []string, err error) {
	disks, err := Disks(sys)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range disks {
		seen = append(seen, d.Name)
		if c, ok := readCard(d, labels); ok {
			found = append(found, c)
		}
	}
	sort.Strings(seen)
	return found, seen, nil
}

func readCard(d Disk, labels map[string]int) (Card, bool) {
	f, err := os.Open(d.Path)
	if err != nil {
		return Card{}, false
	}
	defer f.Close()
	t, health, err := gpt.Read(f, d.Sectors)
	if err != nil {
		return Card{}, false
	}
	for label, n := range labels {
		if p, err := t.ByName(label); err != nil || p.Number != n {
			return Card{}, false
		}
	}
	return Card{Disk: d, Table: t, Health: health}, true
}

// WaitPartitions waits until the kernel shows the partitions with these numbers.
func (d *Disk) WaitPartitions(ctx context.Context, sys string, numbers ...int) error {
	for {
		again, err := readDisk(filepath.Join(sys, d.Name), d.Name)
		if err == nil {
			d.Partitions = again.Partitions
			missing := 0
			for _, n := range numbers {
				if p := d.Partitions[n]; p == "" || !exists(p) {
					missing = n
				}
			}
			if missing == 0 {
				return nil
			}
			err = fmt.Errorf("the kernel does not show partition %d of %s", missing, d.Name)
		}
		select {
		case <-ctx.Done():
			return Failf(ReasonBlock, "%w", err)
		case <-time.After(pollEvery):
		}
	}
}

// RereadPartitions makes the kernel read the partition table anew; nothing of the
// disk may be in use.
func RereadPartitions(f *os.File) error {
	if err := ioctl(f.Fd(), unix.BLKRRPART, nil); err != nil {
		return Failf(ReasonBlock, "read the partition table of %s anew: %w", f.Name(), err)
	}
	return nil
}

// blkpg and its partition are struct blkpg_ioctl_arg and struct blkpg_partition of
// include/uapi/linux/blkpg.h, for 64-bit machines.
type (
	blkpg struct {
		op, flags, datalen int32
		_                  int32
		data               unsafe.Pointer
	}
	blkpgPartition struct {
		start, length int64 // bytes
		number        int32
		_             [64 + 64]byte
		_             int32
	}
)

const (
	blkpgIoctl  = 0x1269
	blkpgResize = 3
)

// ResizePartition tells the kernel that partition number of the disk f starts at
// start and is length long, in bytes. The partition may be open; its start cannot change.
func ResizePartition(f *os.File, number int, start, length int64) error {
	p := blkpgPartition{start: start, length: length, number: int32(number)}
	arg := blkpg{op: blkpgResize, datalen: int32(unsafe.Sizeof(p)), data: unsafe.Pointer(&p)}
	if err := ioctl(f.Fd(), blkpgIoctl, unsafe.Pointer(&arg)); err != nil {
		return Failf(ReasonBlock, "resize partition %d of %s: %w", number, f.Name(), err)
	}
	return nil
}

// BlockBytes is the size of an open block device or file, in bytes.
func BlockBytes(f *os.File) (int64, error) {
	n, err := f.Seek(0, 2)
	if err != nil {
		return 0, Failf(ReasonBlock, "size of %s: %w", f.Name(), err)
	}
	return n, nil
}
