package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	goodRoot = "b8b9b75f2e1e3d539d52b076d5756cbc97853a5fb6631a124a6620dabadcb2c4"
	goodLine = "console=ttyS0 roothash=" + goodRoot + " portcullis.verity=00ff,250,251 quiet"
)

func TestVerityFromCommandLine(t *testing.T) {
	v, err := ParseVerity(goodLine)
	if want := (Verity{goodRoot, "00ff", 250, 251}); err != nil || v != want {
		t.Fatalf("%+v, %v", v, err)
	}
	for name, line := range map[string]string{
		"empty":                 "",
		"no root hash":          "portcullis.verity=00,1,1",
		"no geometry":           "roothash=" + goodRoot,
		"appended second root":  goodLine + " roothash=" + strings.Repeat("0", 64),
		"same root twice":       goodLine + " roothash=" + goodRoot,
		"second geometry":       goodLine + " portcullis.verity=00,1,1",
		"short root":            "roothash=00 portcullis.verity=00,1,1",
		"upper case root":       "roothash=" + strings.ToUpper(goodRoot) + " portcullis.verity=00,1,1",
		"root is no hex":        "roothash=" + strings.Repeat("g", 64) + " portcullis.verity=00,1,1",
		"two fields":            "roothash=" + goodRoot + " portcullis.verity=00,1",
		"four fields":           "roothash=" + goodRoot + " portcullis.verity=00,1,1,ignore_corruption",
		"no salt":               "roothash=" + goodRoot + " portcullis.verity=,1,1",
		"option in the salt":    "roothash=" + goodRoot + " portcullis.verity=-,1,1",
		"salt too long":         "roothash=" + goodRoot + " portcullis.verity=" + strings.Repeat("00", 257) + ",1,1",
		"no blocks":             "roothash=" + goodRoot + " portcullis.verity=00,0,1",
		"signed blocks":         "roothash=" + goodRoot + " portcullis.verity=00,+1,1",
		"leading zero":          "roothash=" + goodRoot + " portcullis.verity=00,01,1",
		"negative start":        "roothash=" + goodRoot + " portcullis.verity=00,1,-1",
		"overflow":              "roothash=" + goodRoot + " portcullis.verity=00,1,18446744073709551615",
		"tree inside the data":  "roothash=" + goodRoot + " portcullis.verity=00,9,8",
		"quoted second command": `roothash="` + goodRoot + `" portcullis.verity=00,1,1`,
	} {
		if v, err := ParseVerity(line); ReasonOf(err) != ReasonCmdline {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

func FuzzVerityFromCommandLine(f *testing.F) {
	f.Add(goodLine)
	f.Add("roothash= portcullis.verity=,,")
	f.Fuzz(func(t *testing.T, line string) {
		v, err := ParseVerity(line)
		if err != nil {
			return
		}
		table := verityTable(7, 0, v)
		if n := len(strings.Fields(table)); n != 10 || v.DataBlocks == 0 || v.HashStart < v.DataBlocks {
			t.Fatalf("%q became the table %q", line, table)
		}
	})
}

func TestModuleList(t *testing.T) {
	got, err := ParseModules("# network\n/lib/a.ko\n\n  /lib/b-c.ko.xz \n")
	if err != nil || strings.Join(got, " ") != "/lib/a.ko /lib/b-c.ko.xz" {
		t.Fatalf("%q, %v", got, err)
	}
	for name, list := range map[string]string{
		"relative":   "lib/a.ko",
		"climbing":   "/lib/../tmp/a.ko",
		"zstd":       "/lib/a.ko.zst",
		"xz alone":   "/lib/a.xz",
		"parameters": "/lib/a.ko debug=1",
	} {
		if got, err := ParseModules(list); ReasonOf(err) != ReasonModules {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestAbsentHardwareIsNoModuleError(t *testing.T) {
	for err, forgiven := range map[error]bool{nil: true, unix.ENODEV: true, unix.EEXIST: true, unix.EKEYREJECTED: false, unix.ENOENT: false, unix.EPERM: false} {
		if got := judgeModule("/a.ko", err); (got == nil) != forgiven {
			t.Errorf("%v became %v", err, got)
		}
	}
	if r := LoadModules([]string{"/nowhere/a.ko"}); len(r) != 1 || r[0].Err == nil {
		t.Errorf("a missing module file: %+v", r)
	}
}

func TestModulesBesideTheBoot(t *testing.T) {
	for _, paths := range [][]string{nil, {"/nowhere/a.ko"}, {"/nowhere/a.ko", "/nowhere/b.ko"}} {
		var told []ModuleResult
		l := StartModules(paths, "dm-mod", func(r []ModuleResult) { told = r })
		l.First()
		l.Before()
		r := l.Wait()
		if len(r) != len(paths) || len(told) != len(paths) {
			t.Fatalf("%v: %+v, told %+v", paths, r, told)
		}
		for i, p := range paths {
			if r[i].Path != p || r[i].Err == nil {
				t.Errorf("%v: %+v", paths, r[i])
			}
		}
	}
}

// TestModulesUntilTheMarked: the drivers of hardware are waited for, what follows them is not.
func TestModulesUntilTheMarked(t *testing.T) {
	marked := filepath.Join(t.TempDir(), "dm-mod.ko")
	if err := unix.Mkfifo(marked, 0o600); err != nil {
		t.Fatal(err)
	}
	l := StartModules([]string{"/nowhere/a.ko", "/nowhere/b.ko", marked, "/nowhere/c.ko"}, "dm-mod", nil)
	l.Before() // opening the pipe waits for a writer
	select {
	case <-l.done:
		t.Fatal("the marked module was not waited with")
	default:
	}
	w, err := os.OpenFile(marked, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if r := l.Wait(); len(r) != 4 || r[2].Path != marked || r[2].Err == nil {
		t.Fatalf("%+v", r)
	}
}

func TestStageLines(t *testing.T) {
	var b bytes.Buffer
	l := NewStageLog(&b, func() time.Duration { return 4215 * time.Millisecond })
	l.Stage("network", "interface", "eth0", "address", "10.77.0.2/24")
	l.Note("progress", "bytes", 7)
	l.Failed("root", Failf("chunk-digest", "chunk %d of %s", 3, "root.img"))
	want := "portcullis: stage=network t=4.21 interface=eth0 address=10.77.0.2/24\n" +
		"portcullis: note=progress t=4.21 bytes=7\n" +
		"portcullis: failed stage=root t=4.21 reason=chunk-digest detail=\"chunk 3 of root.img\"\n"
	if b.String() != want {
		t.Fatalf("got\n%swant\n%s", b.String(), want)
	}
}

// Text from the network must not be able to look like a stage of its own.
func TestAttackStageLineInjection(t *testing.T) {
	for _, text := range []string{"x\nportcullis: stage=agent t=1.00", "a b=c", `a"b`, "\x1b[2J", "ü", "", "a\\b", "\r"} {
		var b bytes.Buffer
		NewStageLog(&b, func() time.Duration { return 0 }).Stage("network", "k", text)
		line := strings.TrimSuffix(b.String(), "\n")
		rest, ok := strings.CutPrefix(line, `portcullis: stage=network t=0.00 k="`)
		if !ok || strings.ContainsAny(line, "\n\r\x1b") || !strings.HasSuffix(rest, `"`) {
			t.Errorf("%q became %q", text, line)
		}
		for _, c := range line {
			if c < ' ' || c > '~' {
				t.Errorf("%q left %q in the line", text, c)
			}
		}
	}
}

func TestReasons(t *testing.T) {
	inner := Failf("inner", "cause: %w", unix.EIO)
	outer := Failf("outer", "tried: %w", inner)
	if ReasonOf(outer) != "outer" || !errors.Is(outer, unix.EIO) || ReasonOf(unix.EIO) != ReasonUnknown {
		t.Errorf("reason %q of %v", ReasonOf(outer), outer)
	}
	err := Guard(func() error { panic("a mistake in the code") })
	if ReasonOf(err) != ReasonPanic {
		t.Errorf("a panic became %v", err)
	}
	if err := Guard(func() error { return inner }); err != inner {
		t.Errorf("an error became %v", err)
	}
}

func TestAvailableMemoryOfMeminfo(t *testing.T) {
	if n, err := parseAvailable(strings.NewReader("MemTotal: 9 kB\nMemAvailable:     612 kB\n")); err != nil || n != 612<<10 {
		t.Errorf("%d, %v", n, err)
	}
	for _, s := range []string{"", "MemTotal: 9 kB", "MemAvailable: x kB", "MemAvailable: 1", "MemAvailable: -1 kB"} {
		if n, err := parseAvailable(strings.NewReader(s)); err == nil {
			t.Errorf("%q gave %d", s, n)
		}
	}
	if n, err := AvailableMemory(); err != nil || n <= 0 {
		t.Errorf("this machine: %d, %v", n, err)
	}
}

func TestChosenWord(t *testing.T) {
	if got := chosen("always within_size advise [never] deny force\n"); got != "never" {
		t.Errorf("%q", got)
	}
}

// The request's bytes are compared with the layout of struct dm_ioctl and
// struct dm_target_spec, since a kernel reads them without a second look.
func TestDeviceMapperRequest(t *testing.T) {
	table := verityTable(7, 3, Verity{goodRoot, "00ff", 250, 251})
	if want := "1 7:3 7:3 4096 4096 250 251 sha256 " + goodRoot + " 00ff"; table != want {
		t.Errorf("table %q", table)
	}
	d := newDM("root", unix.DM_READONLY_FLAG)
	d.addTarget(2000, "verity", []byte(table))
	b := d.b
	spec := b[312:]
	switch {
	case len(b)%8 != 0 || len(b) != 312+40+(len(table)+1+7)&^7:
		t.Errorf("%d bytes", len(b))
	case native.Uint32(b[0:]) != 4 || native.Uint32(b[16:]) != 312 || native.Uint32(b[20:]) != 1:
		t.Errorf("header % x", b[:40])
	case native.Uint32(b[28:]) != unix.DM_READONLY_FLAG || string(b[48:53]) != "root\x00":
		t.Errorf("flags or name % x", b[24:60])
	case native.Uint64(spec) != 0 || native.Uint64(spec[8:]) != 2000 || int(native.Uint32(spec[20:])) != len(spec):
		t.Errorf("target % x", spec[:40])
	case unix.ByteSliceToString(spec[24:40]) != "verity" || unix.ByteSliceToString(spec[40:]) != table:
		t.Errorf("target %q", spec[24:])
	}
}
