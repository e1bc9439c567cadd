package flash

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree is a machine's /sys, /proc and /dev with these disks:
//
//	sda       the system: root file system on sda1, swap on sda2
//	sdb       a card in a USB reader, free
//	sdc       a USB disk that does not call itself removable
//	sdd       a stick with sdd1 mounted
//	sde       a stick whose second partition is held by device-mapper
//	sdf       a stick with btrfs, mounted under a number that is no device's
//	sdg       a reader without a card
//	sdh       a stick of 4 TB
//	sdi       a write-protected stick
//	sdj       a stick with sectors of 4096 bytes
//	mmcblk0   an SD card in a built-in reader, not removable in the kernel's eyes
//	mmcblk1   an eMMC
//	sdk       a stick that is swap as a whole
//	cciss!c0d0  a RAID with a slash in its name
func tree(t testing.TB) System {
	t.Helper()
	s := System{Sys: filepath.Join(t.TempDir(), "sys"), Proc: filepath.Join(t.TempDir(), "proc"), Dev: filepath.Join(t.TempDir(), "dev")}
	put := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, path string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	const usb = "pci0000:00/usb1/1-1/host2/target/block"
	type disk struct {
		name, bus, dev string
		attr           map[string]string
		parts          []string // name number
	}
	gb32 := "62333952"
	stick := func(more map[string]string) map[string]string {
		a := map[string]string{"size": gb32, "removable": "1", "device/vendor": "Generic ", "device/model": "STORAGE\x1b DEVICE "}
		for k, v := range more {
			a[k] = v
		}
		return a
	}
	for _, d := range []disk{
		{"sda", "pci0000:00/ata1/host0/target/block", "8:0", map[string]string{"size": "1000215216", "device/model": "Fast SSD"}, []string{"sda1 8:1", "sda2 8:2"}},
		{"sdb", usb, "8:16", stick(nil), []string{"sdb1 8:17"}},
		{"sdc", usb, "8:32", stick(map[string]string{"removable": "0"}), nil},
		{"sdd", usb, "8:48", stick(nil), []string{"sdd1 8:49"}},
		{"sde", usb, "8:64", stick(nil), []string{"sde1 8:65", "sde2 8:66"}},
		{"sdf", usb, "8:80", stick(nil), []string{"sdf1 8:81"}},
		{"sdg", usb, "8:96", stick(map[string]string{"size": "0"}), nil},
		{"sdh", usb, "8:112", stick(map[string]string{"size": "7814037168"}), nil},
		{"sdi", usb, "8:128", stick(map[string]string{"ro": "1"}), nil},
		{"sdj", usb, "8:144", stick(map[string]string{"queue/logical_block_size": "4096"}), nil},
		{"sdk", usb, "8:160", stick(nil), nil},
		{"mmcblk0", "platform/soc/mmc_host/mmc0/mmc0:aaaa/block", "179:0", map[string]string{"size": gb32, "device/type": "SD", "device/name": "SC32G", "device/cid": "0353445343333247"}, []string{"mmcblk0p1 179:1"}},
		{"mmcblk1", "platform/soc/mmc_host/mmc1/mmc1:0001/block", "179:8", map[string]string{"size": gb32, "device/type": "MMC", "device/name": "eMMC"}, nil},
		{"cciss!c0d0", "pci0000:00/other/block", "104:0", map[string]string{"size": gb32}, nil},
		{"loop0", "virtual/block", "7:0", map[string]string{"size": gb32, "removable": "1"}, nil},
		{"sr0", usb, "11:0", stick(nil), nil},
		{"dm-0", "virtual/block", "254:0", map[string]string{"size": "1000", "dm/name": "vg-root"}, nil},
	} {
		real := filepath.Join(s.Sys, "devices", d.bus, d.name)
		attr := map[string]string{"dev": d.dev, "ro": "0", "removable": "0", "queue/logical_block_size": "512"}
		for k, v := range d.attr {
			attr[k] = v
		}
		for k, v := range attr {
			put(filepath.Join(real, k), v)
		}
		link(real, filepath.Join(s.Sys, "block", d.name))
		link(real, filepath.Join(s.Sys, "class/block", d.name))
		put(filepath.Join(s.Dev, strings.ReplaceAll(d.name, "!", "/")), "")
		for i, p := range d.parts {
			name, number, _ := strings.Cut(p, " ")
			put(filepath.Join(real, name, "dev"), number)
			put(filepath.Join(real, name, "partition"), string(rune('1'+i)))
			link(filepath.Join(real, name), filepath.Join(s.Sys, "class/block", name))
			put(filepath.Join(s.Dev, name), "")
		}
	}
	put(filepath.Join(s.Sys, "devices/pci0000:00/usb1/1-1/idVendor"), "0781")
	put(filepath.Join(s.Sys, "devices/pci0000:00/usb1/1-1/serial"), "READER-7")
	put(filepath.Join(s.Sys, "block/sdi/device/vpd_pg80"), "\x00\x80\x00\x08 UNIT-9 ")
	link(filepath.Join(s.Sys, "block/dm-0"), filepath.Join(s.Sys, "devices", usb, "sde/sde2/holders/dm-0"))
	put(filepath.Join(s.Proc, "self/mountinfo"), strings.Join([]string{
		"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
		"23 22 0:21 / /proc rw - proc proc rw",
		"30 22 8:49 / /media/stick rw - vfat /dev/sdd1 rw",
		`31 22 0:55 /@ /media/b\040c rw shared:9 - btrfs /dev/sdf1 rw`,
		"too short",
	}, "\n"))
	put(filepath.Join(s.Proc, "swaps"), "Filename Type Size Used Priority\n/dev/sda2 partition 8 0 -2\n/dev/sdk partition 8 0 -3")
	link(filepath.Join(s.Dev, "sdb"), filepath.Join(s.Dev, "disk/by-id/usb-card"))
	return s
}

func TestEveryRefusal(t *testing.T) {
	s := tree(t)
	file := filepath.Join(t.TempDir(), "card.img")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 8e9); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(t.TempDir(), "small.img")
	if err := os.WriteFile(small, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, reason, forced string // empty: accepted
	}{
		{"sda", ReasonSystem, ReasonSystem},
		{"sda1", ReasonPartition, ReasonPartition},
		{"sdb", "", ""},
		{"disk/by-id/usb-card", "", ""},
		{"sdb1", ReasonPartition, ReasonPartition},
		{"sdc", ReasonNotRemovable, ""},
		{"sdd", ReasonMounted, ReasonMounted},
		{"sde", ReasonHeld, ReasonHeld},
		{"sdf", ReasonMounted, ReasonMounted},
		{"sdg", ReasonTooSmall, ReasonTooSmall},
		{"sdh", ReasonTooLarge, ""},
		{"sdi", ReasonReadOnly, ReasonReadOnly},
		{"sdj", ReasonSector, ReasonSector},
		{"sdk", ReasonSwap, ReasonSwap},
		{"mmcblk0", "", ""},
		{"mmcblk0p1", ReasonPartition, ReasonPartition},
		{"mmcblk1", ReasonNotRemovable, ""},
		{"cciss/c0d0", ReasonNotRemovable, ""},
		{"nobody", ReasonNotDisk, ReasonNotDisk},
		{"disk", ReasonNotDisk, ReasonNotDisk},
		{file, "", ""},
		{small, ReasonTooSmall, ReasonTooSmall},
		{t.TempDir(), ReasonNotDisk, ReasonNotDisk},
	} {
		path := c.path
		if !strings.HasPrefix(path, "/") {
			path = filepath.Join(s.Dev, path)
		}
		for force, want := range map[bool]string{false: c.reason, true: c.forced} {
			d, err := s.Find(path)
			if err == nil {
				err = d.Check(2e9, force)
			}
			if Reason(err) != want || (err == nil) != (want == "") {
				t.Errorf("%s, force %v: %v, want %q", c.path, force, err, want)
			}
		}
	}
}

func TestListShowsRemovableDisks(t *testing.T) {
	disks, err := tree(t).List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range disks {
		names = append(names, d.Name)
		switch d.Name {
		case "sdb":
			if d.Model != "Generic STORAGE DEVICE" || d.Serial != "READER-7" || d.Transport != "usb" || d.Size != 31914983424 || len(d.Uses) != 0 {
				t.Errorf("%+v", d)
			}
		case "sdd":
			if len(d.Uses) != 1 || d.Uses[0].Detail != "mounted at /media/stick" {
				t.Errorf("%+v", d)
			}
		case "sdi":
			if d.Serial != "UNIT-9" || !d.ReadOnly {
				t.Errorf("%+v", d)
			}
		case "mmcblk0":
			if d.Model != "SC32G" || d.Serial != "0353445343333247" || d.Transport != "mmc" {
				t.Errorf("%+v", d)
			}
		case "sde":
			if len(d.Uses) != 1 || d.Uses[0].Detail != "sde2 is held by dm-0 (vg-root)" {
				t.Errorf("%+v", d)
			}
		}
	}
	if got := strings.Join(names, " "); got != "mmcblk0 sdb sdd sde sdf sdh sdi sdj sdk" {
		t.Error(got)
	}
	b, err := json.Marshal(disks[1])
	if err != nil || !strings.Contains(string(b), `"uses":[]`) || !strings.Contains(string(b), `"removable":true`) {
		t.Errorf("%s, %v", b, err)
	}
	if _, err := (System{Sys: t.TempDir(), Proc: t.TempDir()}).List(); err == nil {
		t.Error("a machine without /sys/block has disks")
	}
}

// Two cards of one kind in turn in one reader are the same to the kernel; another
// size, model or serial number is another device.
func TestIdentity(t *testing.T) {
	s := tree(t)
	find := func(name string) *Disk {
		d, err := s.Find(filepath.Join(s.Dev, name))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	b := find("sdb")
	if b.Identity() != find("disk/by-id/usb-card").Identity() || b.Identity() == find("mmcblk0").Identity() {
		t.Error("identities do not tell disks apart")
	}
	for _, change := range []func(*Disk){
		func(d *Disk) { d.Size++ }, func(d *Disk) { d.Serial = "" }, func(d *Disk) { d.Model = "x" }, func(d *Disk) { d.Transport = "ata" },
	} {
		d := *b
		change(&d)
		if d.Identity() == b.Identity() {
			t.Errorf("%+v is taken for another", d)
		}
	}
}

func TestNeedLeavesRoomForTheSlots(t *testing.T) {
	s := tree(t)
	d, err := s.Find(filepath.Join(s.Dev, "sdb"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(d.Size, false); err != nil {
		t.Errorf("just large enough: %v", err)
	}
	if err := d.Check(d.Size+512, false); Reason(err) != ReasonTooSmall {
		t.Errorf("a sector too small: %v", err)
	}
}
