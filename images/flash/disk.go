package flash

import (
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// System is where the kernel tells about its disks; tests give a tree of their own.
type System struct {
	Sys  string // /sys
	Proc string // /proc
	Dev  string // /dev
}

// Host is the machine that runs.
func Host() System { return System{Sys: "/sys", Proc: "/proc", Dev: "/dev"} }

// Use is a reason why a disk must not be written.
type Use struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"` // for people: where it is mounted, who holds it
}

// Disk is a whole disk, or a regular file that stands for one.
type Disk struct {
	Name      string `json:"name"` // of the kernel: sdb, mmcblk0
	Path      string `json:"path"`
	Model     string `json:"model"`     // vendor and model, or the card's name; may be empty
	Serial    string `json:"serial"`    // of the reader or the card; may be empty
	Size      int64  `json:"size"`      // bytes
	Sector    int    `json:"sector"`    // logical, bytes
	Transport string `json:"transport"` // usb, mmc, nvme, ata, virtio, scsi, file, other
	Removable bool   `json:"removable"` // it says so, or is an SD card
	ReadOnly  bool   `json:"read_only"`
	Uses      []Use  `json:"uses"` // what makes it untouchable; empty when it is free
	Number    string `json:"-"`    // major:minor
	File      bool   `json:"-"`
}

// Identity tells this disk from others as well as the kernel can: a reader's
// serial number says nothing of the card in it.
func (d *Disk) Identity() string {
	words := []string{d.Transport, d.Model, d.Serial, strconv.FormatInt(d.Size, 10)}
	if d.Serial == "" {
		words = append(words, d.Number)
	}
	return strings.Join(words, "\n")
}

// List returns the removable disks that have a medium, sorted by name.
func (s System) List() ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(s.Sys, "block"))
	if err != nil {
		return nil, err
	}
	uses, err := s.uses()
	if err != nil {
		return nil, err
	}
	out := []Disk{}
	for _, e := range entries {
		if d := s.disk(e.Name(), uses); d.Removable && d.Size > 0 && !virtual(d.Name) {
			out = append(out, *d)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// virtual are disks that are no hardware, and optical drives.
func virtual(name string) bool {
	for _, p := range []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"} {
		if rest, ok := strings.CutPrefix(name, p); ok && strings.Trim(rest, "0123456789") == "" {
			return true
		}
	}
	return false
}

// Find returns the disk at path, which may be a link, or a Disk for a regular
// file. A partition is refused.
func (s System) Find(path string) (*Disk, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, refuse(ReasonNotDisk, "%v", err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, refuse(ReasonNotDisk, "%v", err)
	}
	rel, err := filepath.Rel(s.Dev, real)
	if err == nil && !strings.HasPrefix(rel, "..") {
		name := strings.ReplaceAll(rel, "/", "!") // as sysfs spells cciss/c0d0
		if _, err := os.Stat(filepath.Join(s.Sys, "block", name)); err == nil {
			uses, err := s.uses()
			if err != nil {
				return nil, err
			}
			d := s.disk(name, uses)
			d.Path = real
			return d, nil
		}
		if _, err := os.Stat(filepath.Join(s.Sys, "class", "block", name, "partition")); err == nil {
			return nil, refuse(ReasonPartition, "%s is a partition; name the whole disk", real)
		}
		return nil, refuse(ReasonNotDisk, "%s is no disk", real)
	}
	st, err := os.Stat(real)
	if err != nil || !st.Mode().IsRegular() {
		return nil, refuse(ReasonNotDisk, "%s is neither a disk nor a regular file", real)
	}
	var u unix.Stat_t
	if err := unix.Stat(real, &u); err != nil {
		return nil, refuse(ReasonNotDisk, "%s: %v", real, err)
	}
	return &Disk{
		Name: filepath.Base(real), Path: real, Size: st.Size(), Sector: 512, Transport: "file", Removable: true, File: true,
		Number: strconv.FormatUint(u.Dev, 10) + "/" + strconv.FormatUint(u.Ino, 10),
	}, nil
}

// disk reads what sysfs tells of a disk.
func (s System) disk(name string, uses map[string][]Use) *Disk {
	dir := filepath.Join(s.Sys, "block", name)
	d := &Disk{Name: name, Path: filepath.Join(s.Dev, strings.ReplaceAll(name, "!", "/")), Number: s.text(dir, "dev"), Uses: []Use{}}
	sectors, _ := strconv.ParseInt(s.text(dir, "size"), 10, 64) // always of 512 bytes here
	d.Size = sectors * 512
	d.Sector, _ = strconv.Atoi(s.text(dir, "queue/logical_block_size"))
	d.ReadOnly = s.text(dir, "ro") == "1"
	d.Transport = transport(dir)
	kind := s.text(dir, "device/type")
	// A built-in card reader is not removable in the kernel's eyes, the card in it is.
	d.Removable = s.text(dir, "removable") == "1" || d.Transport == "mmc" && kind == "SD"
	d.Model, d.Serial = s.model(dir), s.serial(dir)
	for _, part := range append([]string{"."}, s.partitions(dir)...) {
		own := name
		if part != "." {
			own = part
		}
		d.Uses = append(d.Uses, uses[s.text(filepath.Join(dir, part), "dev")]...)
		d.Uses = append(d.Uses, uses["/dev/"+strings.ReplaceAll(own, "!", "/")]...)
		holders, _ := os.ReadDir(filepath.Join(dir, part, "holders"))
		for _, h := range holders {
			detail := own + " is held by " + h.Name()
			if n := s.text(filepath.Join(s.Sys, "block", h.Name()), "dm/name"); n != "" {
				detail += " (" + n + ")"
			}
			d.Uses = append(d.Uses, Use{ReasonHeld, detail})
		}
	}
	d.Uses = once(d.Uses)
	return d
}

// model is what the device calls itself.
func (s System) model(dir string) string {
	vendor := s.text(dir, "device/vendor")
	if strings.HasPrefix(vendor, "0x") { // virtio and MMC give a number there
		vendor = ""
	}
	if m := strings.Join(strings.Fields(vendor+" "+s.text(dir, "device/model")), " "); m != "" {
		return m
	}
	return s.text(dir, "device/name")
}

// serial is what tells devices of one model apart: a card's CID, a SCSI disk's
// unit serial number (SPC-4 section 7.8.15) or that of the USB device it is in.
func (s System) serial(dir string) string {
	for _, f := range []string{"device/cid", "wwid", "device/wwid", "serial", "device/serial"} {
		if v := s.text(dir, f); v != "" {
			return v
		}
	}
	if page, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80")); err == nil && len(page) > 4 {
		return clean(string(page[4:]))
	}
	up, err := filepath.EvalSymlinks(dir)
	for ; err == nil && strings.HasPrefix(up, s.Sys) && up != s.Sys; up = filepath.Dir(up) {
		if s.text(up, "idVendor") != "" {
			return s.text(up, "serial")
		}
	}
	return ""
}

func once(uses []Use) []Use {
	out, seen := []Use{}, map[Use]bool{}
	for _, u := range uses {
		if !seen[u] {
			out = append(out, u)
		}
		seen[u] = true
	}
	return out
}

func (s System) partitions(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(dir, e.Name(), "partition")); err == nil {
			out = append(out, e.Name())
		}
	}
	return out
}

// text reads a small attribute; one that is not there is empty.
func (s System) text(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return clean(string(b))
}

// clean makes text printable: it goes to terminals, and a stick can call itself anything.
func clean(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text))
}

// transport is the innermost bus in the disk's real path.
func transport(dir string) string {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "other"
	}
	for _, t := range []struct{ mark, name string }{
		{"/usb", "usb"}, {"/mmc_host/", "mmc"}, {"/nvme/", "nvme"}, {"/virtio", "virtio"}, {"/ata", "ata"}, {"/host", "scsi"},
	} {
		if strings.Contains(real, t.mark) {
			return t.name
		}
	}
	return "other"
}

// uses returns what is mounted or swapped to, by major:minor and by source.
func (s System) uses() (map[string][]Use, error) {
	out := map[string][]Use{}
	b, err := os.ReadFile(filepath.Join(s.Proc, "self", "mountinfo"))
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		use := Use{ReasonMounted, "mounted at " + f[4]}
		if f[4] == "/" || f[4] == "/usr" || strings.HasPrefix(f[4], "/boot") {
			use = Use{ReasonSystem, "holds the running system: mounted at " + f[4]}
		}
		out[f[2]] = append(out[f[2]], use)
		// btrfs and others mount with a number that is no device's: their source tells.
		for i, w := range f {
			if w == "-" && i+2 < len(f) && strings.HasPrefix(f[i+2], "/dev/") {
				out[f[i+2]] = append(out[f[i+2]], use)
			}
		}
	}
	b, err = os.ReadFile(filepath.Join(s.Proc, "swaps"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 0 && strings.HasPrefix(f[0], "/dev/") {
			out[f[0]] = append(out[f[0]], Use{ReasonSwap, f[0] + " is swap"})
		}
	}
	return out, nil
}
