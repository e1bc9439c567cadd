package probe

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"portcullis/attestserver/protocol"
)

// Recorded from a Debian trixie guest (Linux 6.12, QEMU).
const (
	recordedMaps = `55b0c4a00000-55b0c4a05000 r--p 00000000 00:1a 1234                       /usr/bin/sleep
55b0c4a05000-55b0c4a0b000 r-xp 00005000 00:1a 1234                       /usr/bin/sleep
7f2f9c828000-7f2f9c990000 r-xp 00028000 00:1a 88                         /usr/lib/x86_64-linux-gnu/libc.so.6
7f2f9cb00000-7f2f9cb01000 rwxp 00000000 00:00 0 
7f2f9cc00000-7f2f9cc04000 r-xp 00000000 00:01 1030                       /memfd:a file (deleted)
7ffd6b3f0000-7ffd6b411000 rw-p 00000000 00:00 0                          [stack]
7ffd6b5d5000-7ffd6b5d7000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`
	recordedModules = `squashfs 86016 1 - Live 0xffffffffc03d5000
br_netfilter 36864 0 - Live 0xffffffffc0446000
bridge 397312 1 br_netfilter, Live 0xffffffffc03d9000
out_of_tree 12288 0 - Loading 0xffffffffc0100000 (OE+)
`
	recordedMounts = `1 1 0:2 / / rw - rootfs rootfs rw,size=475872k,nr_inodes=118968,inode64
24 1 0:22 / /proc rw,nosuid shared:14 master:2 - proc proc rw
32 1 0:26 / /with\040space rw,relatime - overlay root rw,lowerdir=/lower,upperdir=/sc/upper
`
	recordedIomem = `00001000-0009fbff : System RAM
00100000-3ffdffff : System RAM
  01600000-025fffff : Kernel code
  02600000-031fffff : Kernel rodata
`
)

func TestExecutableMappings(t *testing.T) {
	got, err := executableMappings(recordedMaps)
	if err != nil {
		t.Fatal(err)
	}
	want := []mapping{
		{0x55b0c4a05000, 0x55b0c4a0b000, "r-xp", 0x5000, "00:1a", 1234, "/usr/bin/sleep"},
		{0x7f2f9c828000, 0x7f2f9c990000, "r-xp", 0x28000, "00:1a", 88, "/usr/lib/x86_64-linux-gnu/libc.so.6"},
		{0x7f2f9cb00000, 0x7f2f9cb01000, "rwxp", 0, "00:00", 0, ""},
		{0x7f2f9cc00000, 0x7f2f9cc04000, "r-xp", 0, "00:01", 1030, "/memfd:a file (deleted)"},
		{0x7ffd6b5d5000, 0x7ffd6b5d7000, "r-xp", 0, "00:00", 0, "[vdso]"},
		{0xffffffffff600000, 0xffffffffff601000, "--xp", 0, "00:00", 0, "[vsyscall]"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"x", "1-2 r-xp 0 0:0", "2-1 r-xp 0 0:0 0 ", "1-2 r-x 0 0:0 0 ", "1-2 r-xp zz 0:0 0 ", "1-2 r-xp 0 0:0 -1 ",
		"0-ffffffffffffffff r-xp ffffffffffffffff 0:0 0 "} {
		if m, err := executableMappings(bad); err == nil {
			t.Errorf("%q: %+v", bad, m)
		}
	}
}

func TestParseStat(t *testing.T) {
	p, err := parseStat("77 (a) R) b) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2 3\n")
	if err != nil {
		t.Fatal(err)
	}
	if p.comm != "a) R) b" || p.state != 'S' || p.ppid != 1 || p.kernel || p.ending || p.start != 4242 {
		t.Errorf("%+v", p)
	}
	if p, err = parseStat("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 12"); err != nil || !p.kernel {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", "1", "1 (a", "1 a) S", "1 (a) S 1", "1 (a) SS 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242",
		"1 (a) S x 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242", "1 (a) S 1 77 77 0 -1 y 1 2 3 4 5 6 7 8 20 0 1 0 4242"} {
		if p, err := parseStat(bad); err == nil {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}

func TestParseModules(t *testing.T) {
	got, err := parseModules([]byte(recordedModules))
	if err != nil {
		t.Fatal(err)
	}
	want := []protocol.Module{{Name: "squashfs", State: "Live"}, {Name: "br_netfilter", State: "Live"}, {Name: "bridge", State: "Live"},
		{Name: "out_of_tree", State: "Loading", Taint: "OE+"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"a 1 0 -", "../x 1 0 - Live 0x0\n", ".. 1 0 - Live 0x0\n", strings.Repeat("m 1 0 - Live 0x0\n", protocol.MaxModules+1)} {
		if _, err := parseModules([]byte(bad)); err == nil {
			t.Errorf("%.40q was accepted", bad)
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	got, err := parseMountinfo([]byte(recordedMounts))
	if err != nil {
		t.Fatal(err)
	}
	want := []protocol.Mount{{Dev: "0:2", Root: "/", Point: "/", FS: "rootfs"}, {Dev: "0:22", Root: "/", Point: "/proc", FS: "proc"},
		{Dev: "0:26", Root: "/", Point: "/with space", FS: "overlay"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"1 2 3\n", "1 1 0:2 / / rw rootfs\n", "1 1 0:2 / - \n"} {
		if _, err := parseMountinfo([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestParseKernelCode(t *testing.T) {
	start, end, err := parseKernelCode([]byte(recordedIomem))
	if err != nil || start != 0x1600000 || end != 0x25fffff {
		t.Errorf("%#x-%#x, %v", start, end, err)
	}
	// Without CAP_SYS_ADMIN the kernel shows zeros: that must not pass for an address.
	for _, bad := range []string{"", "00000000-00000000 : Kernel code", "xx-1 : Kernel code", "1-yy : Kernel code", "1000-ffffffffff : Kernel code"} {
		if s, e, err := parseKernelCode([]byte(bad)); err == nil {
			t.Errorf("%q: %#x-%#x", bad, s, e)
		}
	}
}

func kcoreHead(n int) []byte {
	b := make([]byte, 64+56*n)
	copy(b, "\x7fELF\x02")
	binary.LittleEndian.PutUint64(b[32:], 64)
	binary.LittleEndian.PutUint16(b[54:], 56)
	binary.LittleEndian.PutUint16(b[56:], uint16(n))
	return b
}

func TestLocate_TakesTheImageAndNotTheDirectMap(t *testing.T) {
	b := kcoreHead(2)
	for i, v := range [][4]uint64{{0x2000, 0xff11000001600000, 0x1600000, 0x2000000}, {0x9000, 0xffffffff81000000, 0x1600000, 0x2c30000}} {
		p := b[64+56*i:]
		binary.LittleEndian.PutUint32(p, 1)
		for k, at := range []int{8, 16, 24, 32} {
			binary.LittleEndian.PutUint64(p[at:], v[k])
		}
	}
	text, err := locate(bytes.NewReader(b), 0x1601000, 0x1000)
	if err != nil || text.base != 0xffffffff81001000 || text.offset != 0xa000 {
		t.Errorf("%+v, %v", text, err)
	}
	if _, err := locate(bytes.NewReader(b), 0x1600000, 0x3000000); err == nil {
		t.Error("a text larger than the segment was found")
	}
}

func TestParseVerityTable(t *testing.T) {
	var v protocol.Verity
	err := parseVerityTable("1 7:0 7:0 4096 4096 27000 27000 sha256 aabb ccdd 1 panic_on_corruption", &v)
	if err != nil || v.DataDev != "7:0" || v.DataBlocks != 27000 || v.HashStart != 27000 || v.Algorithm != "sha256" || v.RootHash != "aabb" || v.Salt != "ccdd" || v.Options != "1 panic_on_corruption" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := parseVerityTable("1 7:0 7:0 4096 4096 27000 27000 sha256 aabb ccdd", &v); err != nil || v.Options != "" {
		t.Errorf("without options: %+v, %v", v, err)
	}
	for _, bad := range []string{"", "0 7:0 7:0 4096 4096 1 1 sha256 aa bb", "1 7:0 7:0 512 4096 1 1 sha256 aa bb", "1 7:0 7:0 4096 4096 x 1 sha256 aa bb"} {
		if err := parseVerityTable(bad, &protocol.Verity{}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func dmAnswer(targets uint32, kind, text string) []byte {
	b := make([]byte, dmHeadSize+dmSpecSize)
	binary.LittleEndian.PutUint32(b[16:], dmHeadSize)
	binary.LittleEndian.PutUint32(b[20:], targets)
	binary.LittleEndian.PutUint32(b[28:], dmReadOnly)
	copy(b[dmHeadSize+24:], kind)
	return append(append(b, text...), 0)
}

func TestParseDMStatus(t *testing.T) {
	got, err := parseDMStatus(dmAnswer(1, "verity", "V"))
	if err != nil || got.targets != 1 || got.kind != "verity" || got.text != "V" || got.flags&dmReadOnly == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	far := dmAnswer(1, "verity", "V")
	binary.LittleEndian.PutUint32(far[16:], 1<<31)
	for name, b := range map[string][]byte{"short": make([]byte, 100), "far": far, "full": func() []byte {
		b := dmAnswer(1, "verity", "V")
		binary.LittleEndian.PutUint32(b[28:], dmBufferFull)
		return b
	}()} {
		if _, err := parseDMStatus(b); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestCPUClass(t *testing.T) {
	cpus := parseCPUInfo("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 158\nstepping\t: 10\nmicrocode\t: 0xf4\nflags\t\t: fpu\nbugs\t\t: x\n\nprocessor\t: 1\n")
	class := cpuClass(cpus)
	if !strings.HasPrefix(class, "genuineintel-6.158.10-f4-") || !strings.HasSuffix(class, "-smp") {
		t.Errorf("class %q", class)
	}
	for _, change := range []string{"flags", "bugs", "microcode", "stepping"} {
		cpus[0][change] += "1"
		if again := cpuClass(cpus); again == class {
			t.Errorf("another %s gives the same class %q", change, class)
		} else {
			class = again
		}
	}
	if one := cpuClass(cpus[:1]); one == class || !strings.HasSuffix(one, "-up") {
		t.Errorf("one CPU: %q", one)
	}
}

func FuzzMaps(f *testing.F) {
	f.Add(recordedMaps)
	f.Fuzz(func(t *testing.T, s string) {
		list, err := executableMappings(s)
		for _, m := range list {
			if err == nil && (m.end <= m.start || !m.executable()) {
				t.Fatalf("%+v", m)
			}
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 12")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = parseStat(s) })
}

func FuzzModules(f *testing.F) {
	f.Add([]byte(recordedModules))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseModules(b)
		for _, m := range list {
			if err == nil && strings.Contains(m.Name, "/") {
				t.Fatalf("%q leads out of /sys/module", m.Name)
			}
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte(recordedMounts))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseMountinfo(b) })
}

func FuzzIomem(f *testing.F) {
	f.Add([]byte(recordedIomem))
	f.Fuzz(func(t *testing.T, b []byte) {
		if start, end, err := parseKernelCode(b); err == nil && end <= start {
			t.Fatalf("%#x-%#x", start, end)
		}
	})
}

func FuzzKcore(f *testing.F) {
	f.Add(kcoreHead(2))
	f.Fuzz(func(t *testing.T, b []byte) {
		if text, err := locate(bytes.NewReader(b), 0x1600000, 0x1000); err == nil && text.base < kernelMap {
			t.Fatalf("%+v", text)
		}
	})
}

func FuzzDMStatus(f *testing.F) {
	f.Add(dmAnswer(1, "verity", "1 7:0 7:0 4096 4096 27000 27000 sha256 aabb ccdd"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if t, err := parseDMStatus(b); err == nil {
			_ = parseVerityTable(t.text, &protocol.Verity{})
		}
	})
}

func FuzzCPUInfo(f *testing.F) {
	f.Add("processor\t: 0\nvendor_id\t: GenuineIntel\n")
	f.Fuzz(func(t *testing.T, s string) {
		cpus := parseCPUInfo(s)
		if len(cpus) == 0 {
			return
		}
		d := protocol.HwData{CPUClass: cpuClass(cpus)}
		if err := d.Check(); err != nil {
			t.Fatalf("class %q: %v", d.CPUClass, err)
		}
	})
}
