package gpt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20 / SectorSize

func id(n byte) GUID { return FromBytes([16]byte{n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, n}) }

// example is the card's table on an image of 300 MiB.
func example() *Table {
	t := &Table{DiskID: id(0xD0), Sectors: 300 * mib}
	at := uint64(mib)
	for i, p := range []struct {
		name string
		kind GUID
		size uint64
	}{
		{"PCCONF", TypeBasicData, 32 * mib}, {"PCBOOT_A", TypeESP, 64 * mib}, {"PCBOOT_B", TypeBasicData, 64 * mib},
		{"PCSEED", TypeLinux, 100 * mib}, {"PCCRYPT", TypeLUKS, 16 * mib},
	} {
		t.Partitions = append(t.Partitions, Partition{Number: i + 1, Name: p.name, Type: p.kind, ID: id(byte(i + 1)), First: at, Last: at + p.size - 1})
		at += p.size
	}
	t.Partitions[1].Attributes = 1 << 63
	return t
}

func written(t testing.TB, table *Table) *disk {
	t.Helper()
	d := newDisk(table.Sectors)
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	return d
}

func equal(a, b *Table) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

func reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return fmt.Sprint(err)
}

func TestRoundTrip(t *testing.T) {
	want := example()
	got, health, err := Read(written(t, want), want.Sectors)
	if err != nil || !health.OK() || !equal(got, want) {
		t.Fatalf("%v, %v\n%+v\n%+v", err, health, got, want)
	}
	p, err := got.ByName("PCSEED")
	if err != nil || p.Number != 4 || p.Offset() != 161<<20 || p.Size() != 100<<20 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := got.ByName("nobody"); reason(err) != ReasonName {
		t.Error(err)
	}
	got.Partitions[0].Name = "PCSEED"
	if _, err := got.ByName("PCSEED"); reason(err) != ReasonName {
		t.Errorf("two partitions of one name: %v", err)
	}
}

func TestGUIDText(t *testing.T) {
	const s = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	if TypeESP.String() != s || TypeESP[0] != 0x28 || TypeESP[15] != 0x3B {
		t.Errorf("%s, %x", TypeESP, TypeESP)
	}
	for _, bad := range []string{"", s[1:], s + "0", strings.Replace(s, "-", "0", 1), strings.Replace(s, "C", "G", 1)} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	if s := FromBytes([16]byte{6: 0xFF, 8: 0xFF}).String(); s[14] != '4' || s[19] != 'B' {
		t.Errorf("%s is no GUID of version 4", s)
	}
}

// tool runs a partitioning tool on a file.
func tool(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command("/usr/sbin/"+name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is needed: apt-get install fdisk gdisk", name)
	}
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func onFile(t testing.TB, table *Table) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(table.Sectors) * SectorSize); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	return path
}

type sfdiskTable struct {
	PartitionTable struct {
		Label, ID         string
		FirstLBA, LastLBA uint64
		Partitions        []struct {
			Start, Size             uint64
			Type, UUID, Name, Attrs string
		}
	}
}

func TestSfdiskAcceptsWhatIsWritten(t *testing.T) {
	grown := example()
	if err := grown.Grow(8 << 30 / SectorSize); err != nil {
		t.Fatal(err)
	}
	for name, table := range map[string]*Table{"as built": example(), "grown": grown} {
		t.Run(name, func(t *testing.T) {
			path := onFile(t, table)
			if out := tool(t, "", "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
				t.Error(out)
			}
			if out := tool(t, "", "sgdisk", "--verify", path); !strings.Contains(out, "No problems found") {
				t.Error(out)
			}
			var got sfdiskTable
			if err := json.Unmarshal([]byte(tool(t, "", "sfdisk", "--json", path)), &got); err != nil {
				t.Fatal(err)
			}
			pt := got.PartitionTable
			if pt.Label != "gpt" || pt.ID != table.DiskID.String() || pt.LastLBA != table.LastUsable() || len(pt.Partitions) != 5 {
				t.Errorf("%+v", pt)
			}
			for i, p := range table.Partitions {
				g := pt.Partitions[i]
				if g.Start != p.First || g.Size != p.Last-p.First+1 || g.Type != p.Type.String() || g.UUID != p.ID.String() || g.Name != p.Name {
					t.Errorf("%+v instead of %+v", g, p)
				}
			}
		})
	}
}

func TestReadsWhatSfdiskWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 300<<20); err != nil {
		t.Fatal(err)
	}
	want := example()
	script := fmt.Sprintf("label: gpt\nlabel-id: %s\n", want.DiskID)
	for _, p := range want.Partitions {
		script += fmt.Sprintf("start=%d, size=%d, type=%s, uuid=%s, name=%q\n", p.First, p.Last-p.First+1, p.Type, p.ID, p.Name)
	}
	script = strings.Replace(script, `"PCBOOT_A"`, `"PCBOOT_A", attrs="GUID:63"`, 1)
	tool(t, script, "sfdisk", "-q", path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, health, err := Read(f, want.Sectors)
	if err != nil || !health.OK() || !equal(got, want) {
		t.Errorf("%v, %v\n%+v\n%+v", err, health, got, want)
	}
}

func TestImageOnLargerCardGrows(t *testing.T) {
	small := example()
	d := written(t, small)
	d.size = 32 << 30
	table, health, err := Read(d, d.count())
	if err != nil || table.Sectors != small.Sectors || health.OK() || health.FromBackup {
		t.Fatalf("%v, %v, %+v", err, health, table)
	}
	if err := table.Grow(d.count()); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	again, health, err := Read(d, d.count())
	if err != nil || !health.OK() {
		t.Fatalf("%v, %v", err, health)
	}
	p, err := again.ByName("PCCRYPT")
	if end := p.Offset() + p.Size(); err != nil || end != 32<<30-1<<20 || p.First != small.Partitions[4].First {
		t.Errorf("%+v ends at %d, %v", p, end, err)
	}
	if err := again.Grow(small.Sectors); reason(err) != ReasonSize {
		t.Errorf("shrinking: %v", err)
	}
	before := fmt.Sprint(again)
	if err := again.Grow(d.count()); err != nil || fmt.Sprint(again) != before {
		t.Errorf("growing twice changes something: %v", err)
	}
}

// Every write is cut off after every sector, and the sector being written may be
// torn: there always is a table with the five partitions, and doing it all again
// ends in a whole one.
func TestPowerCutWhileGrowingKeepsATable(t *testing.T) {
	for _, start := range []string{"image", "grown before", "primary lost", "backup lost"} {
		t.Run(start, func(t *testing.T) {
			small := example()
			d := written(t, small)
			d.size = 2 << 30
			if start != "image" {
				table := example()
				if err := table.Grow(d.count()); err != nil {
					t.Fatal(err)
				}
				if err := table.Write(d); err != nil {
					t.Fatal(err)
				}
			}
			switch start {
			case "primary lost":
				d.put(make([]byte, SectorSize), SectorSize)
			case "backup lost":
				d.put(make([]byte, SectorSize), d.size-SectorSize)
			}
			before := d.clone()
			d.writes = nil
			redo(t, d)
			var parts []write
			for _, w := range d.writes {
				for i := 0; i < len(w.b); i += SectorSize {
					parts = append(parts, write{w.off + int64(i), w.b[i : i+SectorSize]})
				}
			}
			if len(parts) != 2*arraySectors+3 {
				t.Fatalf("%d sectors are written", len(parts))
			}
			for n := range parts {
				for torn := range 3 {
					d := before.clone()
					for _, w := range parts[:n] {
						d.put(w.b, w.off)
					}
					switch torn {
					case 1:
						d.put(parts[n].b[:SectorSize/3], parts[n].off)
					case 2:
						d.put(bytes.Repeat([]byte{0xA5}, SectorSize), parts[n].off)
					}
					table, health, err := Read(d, d.count())
					if err != nil || len(table.Partitions) != 5 {
						t.Fatalf("cut at sector %d (%d): %v, %v", n, torn, err, health)
					}
					redo(t, d)
					if _, health, err := Read(d, d.count()); err != nil || !health.OK() {
						t.Fatalf("again after a cut at sector %d (%d): %v, %v", n, torn, err, health)
					}
				}
			}
		})
	}
}

// redo is what pi-init does: read, grow, write.
func redo(t testing.TB, d *disk) {
	t.Helper()
	table, _, err := Read(d, d.count())
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Grow(d.count()); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	if p, err := table.ByName("PCCRYPT"); err != nil || p.Offset()+p.Size() != d.size-1<<20 {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestFallsBackToTheBackup(t *testing.T) {
	want := example()
	for name, c := range map[string]struct {
		change func(*disk)
		grown  bool
	}{
		"header gone":              {func(d *disk) { d.put(make([]byte, SectorSize), SectorSize) }, false},
		"header and MBR gone":      {func(d *disk) { d.put(make([]byte, 2*SectorSize), 0) }, false},
		"entries changed":          {func(d *disk) { d.put([]byte{1}, 2*SectorSize+100) }, false},
		"on a larger card, MBR":    {func(d *disk) { d.put(make([]byte, SectorSize), SectorSize) }, true},
		"on a larger card, header": {func(d *disk) { d.put(make([]byte, SectorSize), 0); d.put([]byte{1}, 2*SectorSize) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := written(t, want)
			if c.grown {
				d.size = 1 << 30
			}
			c.change(d)
			got, health, err := Read(d, d.count())
			if err != nil || !health.FromBackup || health.OK() || health.PrimaryFault == "" || !equal(got, want) {
				t.Errorf("%v, %v", err, health)
			}
		})
	}
}

// A card that carried something else keeps that one's backup at its end.
func TestBackupOfAnotherDiskIsNotTaken(t *testing.T) {
	stranger := example()
	stranger.DiskID = id(0xEE)
	if err := stranger.Grow(1 << 30 / SectorSize); err != nil {
		t.Fatal(err)
	}
	d := written(t, stranger)
	ours := example()
	if err := ours.Write(d); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []struct {
		name string
		b    []byte
		off  int64
	}{
		{"entries", []byte{1}, 2 * SectorSize},             // the header still tells
		{"header", make([]byte, SectorSize), SectorSize},   // the MBR still tells
		{"header torn", make([]byte, 60), SectorSize + 32}, // its checksum is wrong
	} {
		d := d.clone()
		d.put(damage.b, damage.off)
		got, health, err := Read(d, d.count())
		if err != nil || got.DiskID != ours.DiskID || !health.FromBackup {
			t.Errorf("%s: %v, %v, %+v", damage.name, err, health, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Table)
		reason string
	}{
		"overlap":             {func(t *Table) { t.Partitions[1].First-- }, ReasonInvalid},
		"last before first":   {func(t *Table) { t.Partitions[1].Last = t.Partitions[1].First - 1 }, ReasonInvalid},
		"on the entries":      {func(t *Table) { t.Partitions[0].First = firstUsable - 1 }, ReasonInvalid},
		"on the backup":       {func(t *Table) { t.Partitions[4].Last = t.LastUsable() + 1 }, ReasonInvalid},
		"number twice":        {func(t *Table) { t.Partitions[1].Number = 1 }, ReasonInvalid},
		"number 0":            {func(t *Table) { t.Partitions[0].Number = 0 }, ReasonInvalid},
		"number 129":          {func(t *Table) { t.Partitions[0].Number = 129 }, ReasonInvalid},
		"GUID twice":          {func(t *Table) { t.Partitions[1].ID = t.Partitions[0].ID }, ReasonInvalid},
		"no GUID":             {func(t *Table) { t.Partitions[1].ID = GUID{} }, ReasonInvalid},
		"no type":             {func(t *Table) { t.Partitions[1].Type = GUID{} }, ReasonInvalid},
		"no disk GUID":        {func(t *Table) { t.DiskID = GUID{} }, ReasonInvalid},
		"name of 37 units":    {func(t *Table) { t.Partitions[1].Name = strings.Repeat("n", 37) }, ReasonInvalid},
		"too small a device":  {func(t *Table) { t.Sectors = MinSectors - 1; t.Partitions = nil }, ReasonSize},
		"impossibly large":    {func(t *Table) { t.Sectors = 1 << 60 }, ReasonSize},
		"smaller than needed": {func(t *Table) { t.Sectors = 200 * mib }, ReasonInvalid},
	} {
		table := example()
		c.change(table)
		d := newDisk(400 * mib)
		if err := table.Write(d); reason(err) != c.reason || len(d.writes) != 0 {
			t.Errorf("%s: %v after %d writes", name, err, len(d.writes))
		}
		if err := table.Grow(1 << 40); reason(err) != c.reason {
			t.Errorf("%s: grown: %v", name, err)
		}
	}
}

func TestWriteErrorsAreReported(t *testing.T) {
	for n := range 5 {
		if err := example().Write(&failing{newDisk(300 * mib), n}); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write %d: %v", n, err)
		}
	}
}
