package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/gpt"
)

// fakeSys is a /sys/class/block with device nodes that are files.
type fakeSys struct {
	t        *testing.T
	sys, dev string
}

func newSys(t *testing.T) *fakeSys {
	t.Helper()
	s := &fakeSys{t, t.TempDir(), t.TempDir()}
	old := devDir
	devDir = s.dev
	t.Cleanup(func() { devDir = old })
	return s
}

func (s *fakeSys) file(path, content string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

const fakeSectors = 64 << 11 // 64 MiB

// disk adds a disk with partitions of these names; hardware says whether there is a
// device behind it.
func (s *fakeSys) disk(name string, hardware bool, labels ...string) {
	s.t.Helper()
	dir := filepath.Join(s.sys, name)
	s.file(filepath.Join(dir, "uevent"), "MAJOR=1\nDEVNAME="+name+"\nDEVTYPE=disk\n")
	s.file(filepath.Join(dir, "size"), fmt.Sprintf("%d\n", fakeSectors))
	if hardware {
		s.file(filepath.Join(dir, "device", "type"), "SD\n")
	}
	node := filepath.Join(s.dev, name)
	s.file(node, "")
	if err := os.Truncate(node, fakeSectors*512); err != nil {
		s.t.Fatal(err)
	}
	table := &gpt.Table{DiskID: gpt.FromBytes([16]byte{1}), Sectors: fakeSectors}
	for i, l := range labels {
		table.Partitions = append(table.Partitions, gpt.Partition{Number: i + 1, Name: l, Type: gpt.TypeLinux, ID: gpt.FromBytes([16]byte{2, byte(i)}),
			First: uint64(2048 * (i + 1)), Last: uint64(2048*(i+2) - 1)})
		s.part(name, i+1)
	}
	if len(labels) == 0 {
		return
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := table.Write(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fakeSys) part(disk string, n int) {
	p := fmt.Sprintf("%sp%d", disk, n)
	for _, dir := range []string{filepath.Join(s.sys, disk, p), filepath.Join(s.sys, p)} {
		s.file(filepath.Join(dir, "partition"), fmt.Sprintf("%d\n", n))
		s.file(filepath.Join(dir, "uevent"), "DEVNAME="+p+"\n")
	}
	s.file(filepath.Join(s.dev, p), "")
}

var wanted = map[string]int{"ONE": 1, "TWO": 2}

func find(s *fakeSys, limit time.Duration) (*Card, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	return FindCard(ctx, s.sys, wanted)
}

func TestCardIsFoundByItsLabels(t *testing.T) {
	s := newSys(t)
	s.disk("ram0", false, "ONE", "TWO")
	s.disk("sda", true)
	s.disk("sdb", true, "ONE")
	s.disk("sdc", true, "TWO", "ONE") // the right labels in another order
	s.disk("mmcblk9", true, "ONE", "TWO", "THREE")
	c, err := find(s, time.Second)
	if err != nil || c.Name != "mmcblk9" || c.Path != filepath.Join(s.dev, "mmcblk9") || len(c.Partitions) != 3 || !c.Health.OK() {
		t.Fatalf("%+v, %v", c, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.WaitPartitions(ctx, s.sys, 1, 2, 3); err != nil || c.Partitions[3] != filepath.Join(s.dev, "mmcblk9p3") {
		t.Errorf("%v, %v", c.Partitions, err)
	}
}

// TestAttackSecondCardWithTheSameLabels: whoever plugs in another card does not get
// to choose which one is booted.
func TestAttackSecondCardWithTheSameLabels(t *testing.T) {
	s := newSys(t)
	s.disk("mmcblk0", true, "ONE", "TWO")
	s.disk("sda", true, "ONE", "TWO")
	if _, err := find(s, time.Second); ReasonOf(err) != ReasonCardTwice {
		t.Errorf("%v", err)
	}
}

func TestCardThatAppearsLater(t *testing.T) {
	s := newSys(t)
	s.disk("sda", true)
	if _, err := find(s, 10*time.Millisecond); ReasonOf(err) != ReasonCardMissing || !strings.Contains(err.Error(), "sda") {
		t.Errorf("%v", err)
	}
	made := make(chan struct{})
	go func() {
		defer close(made)
		time.Sleep(3 * pollEvery)
		s.disk("mmcblk0", true, "ONE", "TWO")
	}()
	defer func() { <-made }()
	if c, err := find(s, 10*time.Second); err != nil || c.Name != "mmcblk0" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestPartitionsThatTheKernelDoesNotShow(t *testing.T) {
	s := newSys(t)
	s.disk("mmcblk0", true, "ONE", "TWO")
	d, err := Disks(s.sys)
	if err != nil || len(d) != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*pollEvery)
	defer cancel()
	if err := d[0].WaitPartitions(ctx, s.sys, 1, 2, 3); ReasonOf(err) != ReasonBlock || !strings.Contains(err.Error(), "partition 3") {
		t.Errorf("%v", err)
	}
}

// TestDeviceNameThatLeavesDev: uevents come from the kernel, but a name is a path.
func TestDeviceNameThatLeavesDev(t *testing.T) {
	s := newSys(t)
	s.disk("sda", true, "ONE", "TWO")
	s.file(filepath.Join(s.sys, "sda", "uevent"), "DEVNAME=../etc/passwd\n")
	if d, err := Disks(s.sys); err == nil {
		t.Errorf("%+v", d)
	}
}
