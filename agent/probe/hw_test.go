package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"portcullis/attestserver/protocol"
)

// memoryTable is an SMBIOS table with one full and one empty slot.
func memoryTable() []byte {
	structure := func(kind byte, body []byte, words ...string) []byte {
		b := append([]byte{kind, byte(len(body) + 4), 0x12, 0x34}, body...)
		for _, w := range words {
			b = append(append(b, w...), 0)
		}
		if len(words) == 0 {
			b = append(b, 0)
		}
		return append(b, 0)
	}
	full := make([]byte, 0x28-4)
	le := binary.LittleEndian
	le.PutUint16(full[0x0c-4:], 0x7fff)
	le.PutUint32(full[0x1c-4:], 32768)
	full[0x10-4], full[0x12-4] = 1, 0x1a
	full[0x17-4], full[0x18-4], full[0x1a-4] = 2, 3, 4
	le.PutUint16(full[0x20-4:], 2400) // configured speed: not part of what is kept
	empty := make([]byte, 0x15-4)
	empty[0x10-4] = 1
	table := structure(0, make([]byte, 20), "firmware")
	table = append(table, structure(17, full, "DIMM A", "Maker", "0xC0FFEE", "PART-1")...)
	table = append(table, structure(17, empty, "DIMM B")...)
	return append(table, structure(127, nil)...)
}

func TestDIMMs_FromTheFirmwaresTable(t *testing.T) {
	dir := t.TempDir()
	put(t, memoryTable(), dir, "firmware/dmi/tables/DMI")
	got := Host{Sys: dir}.dimms()
	want := []protocol.Component{
		{Class: "dimm", Slot: "0 DIMM A", Value: "32768 MiB type 26 Maker PART-1 0xC0FFEE"},
		{Class: "dimm", Slot: "1 DIMM B", Value: "0 MiB type 0"},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%+v", got)
	}
	other := bytes.Replace(memoryTable(), []byte{0x60, 0x09}, []byte{0x80, 0x0c}, 1) // 3200 instead of 2400 MT/s
	put(t, other, dir, "firmware/dmi/tables/DMI")
	if again := (Host{Sys: dir}).dimms(); bytes.Equal(other, memoryTable()) || again[0] != want[0] {
		t.Errorf("another configured speed is another module: %+v", again)
	}
}

func FuzzDIMMs(f *testing.F) {
	f.Add(memoryTable())
	f.Add([]byte{17, 0x15, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		list := parseDIMMs(b)
		if len(list) > maxDIMMs {
			t.Fatalf("%d modules", len(list))
		}
		for _, d := range list {
			if len(d.String()) > protocol.MaxString || len(d.locator) > protocol.MaxString/8 {
				t.Fatalf("%+v", d)
			}
		}
	})
}

// Buses are numbered anew at each boot; where a device is must not change with it.
func TestUSBSlot_IsTheControllersNotTheBuss(t *testing.T) {
	for _, bus := range []string{"1", "7"} {
		dir := t.TempDir()
		real := filepath.Join(dir, "devices/pci0000:00/0000:00:14.0/usb"+bus)
		put(t, []byte("1d6b\n"), real, "idVendor")
		put(t, []byte("0002\n"), real, "idProduct")
		put(t, []byte("0607\n"), real, "bcdDevice") // a root hub's is the kernel's version
		put(t, []byte("0781\n"), real, bus+"-4", "idVendor")
		put(t, []byte("S3R\n"), real, bus+"-4", "serial")
		for name, to := range map[string]string{"usb" + bus: real, bus + "-4": filepath.Join(real, bus+"-4")} {
			link(t, to, dir, "bus/usb/devices", name)
		}
		got := Host{Sys: dir}.usb()
		want := map[string]string{"0000:00:14.0 usb2": "1d6b 0002", "0000:00:14.0 usb2 4": "0781   S3R"}
		if len(got) != 2 || want[got[0].Slot] != got[0].Value || want[got[1].Slot] != got[1].Value {
			t.Errorf("bus %s: %q", bus, got)
		}
	}
}

// A disk is known by its serial number, whatever name it got this time.
func TestDisks_AreKnownByTheirSerials(t *testing.T) {
	var first []protocol.Component
	for _, names := range [][]string{{"sda", "sdb"}, {"sdb", "sda"}} {
		dir := t.TempDir()
		for i, name := range names {
			serial := []string{"SER-A", "SER-B"}[i]
			put(t, []byte("1000\n"), dir, "block", name, "size")
			put(t, append([]byte{0, 0x80, 0, byte(len(serial) + 2)}, "  "+serial...), dir, "block", name, "device/vpd_pg80")
			put(t, []byte("1.0\n"), dir, "block", name, "device/rev")
		}
		put(t, []byte("1\n"), dir, "block/loop0/size")
		got := Host{Sys: dir}.disks()
		sortComponents(got)
		if len(got) != 4 || got[0].Slot != "SER-A" || got[3].Slot != "block SER-B" {
			t.Fatalf("%+v", got)
		}
		for i := range first {
			if first[i] != got[i] {
				t.Errorf("%+v became %+v", first[i], got[i])
			}
		}
		first = got
	}
}

// Whether a disc lies in the drive is no matter of hardware.
func TestDisks_RemovableMediaAreNoHardware(t *testing.T) {
	dir := t.TempDir()
	put(t, []byte("1\n"), dir, "block/sr0/removable")
	put(t, []byte("DVD\n"), dir, "block/sr0/device/model")
	put(t, []byte("0\n"), dir, "block/sr0/size")
	before := Host{Sys: dir}.disks()
	put(t, []byte("9000\n"), dir, "block/sr0/size")
	if after := (Host{Sys: dir}).disks(); len(before) != 1 || after[0] != before[0] {
		t.Errorf("%+v became %+v", before, after)
	}
}

func TestFirmwareTables_ByTheirDigests(t *testing.T) {
	dir := t.TempDir()
	put(t, []byte("table"), dir, "firmware/acpi/tables/DSDT")
	put(t, []byte("log"), dir, "firmware/acpi/tables/data/BERT")
	for i, s := range []string{"0", "1", "10", "2"} {
		put(t, []byte{'0' + byte(i), '\n'}, dir, "firmware/memmap", s, "start")
	}
	if got := (Host{Sys: dir}).acpi(); len(got) != 1 || got[0].Slot != "DSDT" || len(got[0].Value) != 64 {
		t.Errorf("%+v", got)
	}
	before := Host{Sys: dir}.memmap()
	put(t, []byte("System RAM\n"), dir, "firmware/memmap/10/type")
	if after := (Host{Sys: dir}).memmap(); len(before) != 1 || after[0] == before[0] {
		t.Errorf("%+v became %+v", before, after)
	}
	if got := (Host{Sys: t.TempDir()}).memmap(); got != nil {
		t.Errorf("a map of nothing: %+v", got)
	}
}

// The rate that is measured on this machine repeats, loaded or not.
func TestTSC_RateRepeats(t *testing.T) {
	first := tscRate()
	for range 5 {
		if r := tscRate(); r > first+first/32 || r < first-first/32 {
			t.Errorf("%d kHz, before it was %d", r, first)
		}
	}
}

func TestCPUID_RepeatsOnEveryCore(t *testing.T) {
	first := cpuidComponents()
	for range 100 {
		for i, c := range cpuidComponents() {
			if c != first[i] {
				t.Fatalf("%+v became %+v", first[i], c)
			}
		}
	}
}

// The experiment: no agent has a PUF; a simulated one is near to itself and far
// from another.
func TestPUF_IsOffAndSimulated(t *testing.T) {
	dir := t.TempDir()
	for _, p := range All(Host{Sys: dir}) {
		if h, ok := p.(*Hw); ok && h.PUF != nil {
			t.Error("an agent has a PUF")
		}
	}
	random := rand.NewChaCha8([32]byte{1})
	answer := func(seed byte) []byte {
		c, err := pufSource{&SimulatedPUF{Seed: [32]byte{seed}, Noise: 65536 / 20, Random: random}}.Components(context.Background())
		if err != nil || len(c) != 1 || c[0].Class != protocol.HwPUF {
			t.Fatalf("%+v, %v", c, err)
		}
		b, err := hex.DecodeString(c[0].Value)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	distance := func(a, b []byte) (n int) {
		for i := range a {
			n += bits.OnesCount8(a[i] ^ b[i])
		}
		return n
	}
	a, again, other := answer(1), answer(1), answer(2)
	if d := distance(a, again); d == 0 || d > 8*PUFBytes/5 {
		t.Errorf("%d bits between two responses of one piece", d)
	}
	if d := distance(a, other); d < 8*PUFBytes*2/5 {
		t.Errorf("%d bits between two pieces", d)
	}
}

func put(t *testing.T, b []byte, parts ...string) {
	t.Helper()
	p := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to string, parts ...string) {
	t.Helper()
	p := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, p); err != nil {
		t.Fatal(err)
	}
}
