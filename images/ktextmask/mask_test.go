package ktextmask

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func classRanges(m *Mask, name string) []Range {
	for _, c := range m.Classes {
		if c.Name == name {
			return c.Ranges
		}
	}
	return nil
}

func TestBuild_FindsEverySite(t *testing.T) {
	s := newSample()
	for _, how := range []string{"zstd", "xz", "gzip"} {
		m, err := Build(bzImage(t, s.elf(), how))
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		if m.Release != "6.12.0-test" || m.TextBase != textAddr || m.TextSize != textSize {
			t.Errorf("%s: %q, text of %d bytes at %#x", how, m.Release, m.TextSize, m.TextBase)
		}
		if want := merge(append(slices.Clone(s.entries), Range{textSize - 0x200, 7})); !slices.Equal(m.Boot, want) {
			t.Errorf("%s: patched at boot: %d ranges, want %d", how, len(m.Boot), len(want))
		}
		for name, want := range map[string][]Range{JumpLabel: s.jumps, StaticCall: s.calls, Trampoline: s.tramps,
			RuntimeConst: {{textSize - 0x300, 8}}} {
			if got := classRanges(m, name); !slices.Equal(got, want) {
				t.Errorf("%s: %s: %d ranges, want %d", how, name, len(got), len(want))
			}
		}
		if len(m.Stock) != 4 {
			t.Errorf("%s: %d pieces, want 4", how, len(m.Stock))
		}
	}
}

// Code outside of the sites must change the digests, code in a site must not.
func TestBuild_StockDigestsCoverAllButTheSites(t *testing.T) {
	s := newSample()
	whole, err := Build(bzImage(t, s.elf(), "gzip"))
	if err != nil {
		t.Fatal(err)
	}
	s.text[s.jumps[0].Off+s.jumps[0].Len] ^= 1
	changed, err := Build(bzImage(t, s.elf(), "gzip"))
	if err != nil {
		t.Fatal(err)
	}
	if whole.Stock[0] == changed.Stock[0] || whole.Stock[1] != changed.Stock[1] {
		t.Error("a changed byte beside a site must change the digest of its piece and of no other")
	}
	s = newSample()
	copy(s.text[textSize-0x200:], []byte{1, 2, 3, 4, 5, 6, 7})
	patched, err := Build(bzImage(t, s.elf(), "gzip"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(whole.Stock, patched.Stock) {
		t.Error("an alternative that is patched must not change the digests")
	}
}

func TestBuild_RefusesWhatItCannotReadForCertain(t *testing.T) {
	good := newSample()
	for name, image := range map[string][]byte{
		"nothing":        nil,
		"not a bzImage":  make([]byte, 4096),
		"no payload":     bzImage(t, nil, "gzip")[:3000],
		"not an ELF":     bzImage(t, []byte("kernel"), "zstd"),
		"cut short":      bzImage(t, good.elf(), "zstd")[:4000],
		"no jump labels": func() []byte { s := newSample(); clear(s.rodata); return bzImage(t, s.elf(), "gzip") }(),
		"no entries":     func() []byte { s := newSample(); clear(s.init); return bzImage(t, s.elf(), "gzip") }(),
		"alternatives":   func() []byte { s := newSample(); s.alt = s.alt[:13]; return bzImage(t, s.elf(), "gzip") }(),
		"no notes":       func() []byte { s := newSample(); s.notes = nil; return bzImage(t, s.elf(), "gzip") }(),
		"no static calls": func() []byte {
			s := newSample()
			clear(s.rodata[64+16*sampleJumps:])
			return bzImage(t, s.elf(), "gzip")
		}(),
	} {
		if m, err := Build(image); err == nil {
			t.Errorf("%s: a mask of %d classes came out", name, len(m.Classes))
		}
	}
}

func TestEncode_RoundTripAndSummary(t *testing.T) {
	m, err := Build(bzImage(t, newSample().elf(), "zstd"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, second) || !slices.Equal(m.Stock, again.Stock) || !reflect.DeepEqual(m.RunTime(), again.RunTime()) {
		t.Error("a mask does not survive being written and read")
	}
	s := m.Summary(file)
	bytesOut := 0
	for _, r := range m.RunTime() {
		bytesOut += int(r.Len)
	}
	if s.Total != textSize || s.Bytes != bytesOut || s.Sites < sampleJumps || len(s.SHA256) != 64 {
		t.Errorf("summary %+v, want %d bytes", s, bytesOut)
	}
}

func TestDecode_RefusesWhatEncodeDoesNotWrite(t *testing.T) {
	m := &Mask{Release: "r", TextBase: 1, TextSize: 100, Classes: []Class{{Name: JumpLabel, Ranges: []Range{{4, 2}, {10, 5}}, Targets: []uint32{50, 60}}}, Stock: make([][32]byte, 1)}
	good, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	bad := func(edit func(*Mask)) []byte {
		c := *m
		c.Classes = []Class{{Name: JumpLabel, Ranges: slices.Clone(m.Classes[0].Ranges), Targets: slices.Clone(m.Classes[0].Targets)}}
		edit(&c)
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	version := slices.Clone(good)
	binary.LittleEndian.PutUint16(version[8:], 2)
	for name, file := range map[string][]byte{
		"empty":          {},
		"magic":          append([]byte("X"), good...),
		"version":        version,
		"cut":            good[:len(good)-1],
		"surplus":        append(slices.Clone(good), 0),
		"header surplus": bytes.Replace(good, []byte(`"release"`), []byte(`"relaase"`), 1),
		"outside":        bad(func(c *Mask) { c.Classes[0].Ranges[1].Off = 99 }),
		"empty range":    bad(func(c *Mask) { c.Classes[0].Ranges[1].Len = 0 }),
		"jump out":       bad(func(c *Mask) { c.Classes[0].Targets[1] = 100 }),
		"boot outside":   bad(func(c *Mask) { c.Boot = []Range{{99, 2}} }),
		"no text":        bad(func(c *Mask) { c.TextSize = 0 }),
		"huge text":      bad(func(c *Mask) { c.TextSize = maxTextSize + 1 }),
		"digests":        bad(func(c *Mask) { c.Stock = nil }),
	} {
		if _, err := Decode(file); err == nil {
			t.Errorf("%s: accepted", name)
		} else if !strings.HasPrefix(err.Error(), "ktext mask: ") {
			t.Errorf("%s: error does not say what it is about: %v", name, err)
		}
	}
}

func TestZero(t *testing.T) {
	ranges := []Range{{2, 3}, {8, 4}, {20, 1}}
	for _, c := range []struct {
		off, n int
		want   string
	}{
		{0, 24, "xx...xxx....xxxxxxxx.xxx"},
		{3, 6, "..xxx."},
		{4, 1, "."},
		{5, 3, "xxx"},
		{12, 8, "xxxxxxxx"},
		{9, 2, ".."},
	} {
		b := bytes.Repeat([]byte("x"), c.n)
		Zero(b, uint64(c.off), ranges)
		if got := strings.ReplaceAll(string(b), "\x00", "."); got != c.want {
			t.Errorf("from %d: %q, want %q", c.off, got, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	m, err := Build(bzImage(f, newSample().elf(), "gzip"))
	if err != nil {
		f.Fatal(err)
	}
	file, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte("PCKTMASK\x01\x00\x02\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		for _, r := range append(m.RunTime(), m.Boot...) {
			if uint64(r.Off)+uint64(r.Len) > m.TextSize {
				t.Fatalf("range %v behind the end %d", r, m.TextSize)
			}
		}
	})
}

func FuzzBuild(f *testing.F) {
	f.Add(newSample().elf())
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := build("fuzz", b)
		if err != nil {
			return
		}
		file, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(file); err != nil {
			t.Fatalf("a mask that was built does not decode: %v", err)
		}
	})
}

func FuzzBzImage(f *testing.F) {
	f.Add(bzImage(f, []byte("kernel"), "gzip"))
	f.Add(bzImage(f, []byte("kernel"), "zstd"))
	f.Add(make([]byte, 0x300))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = Release(b)
		_, _ = Vmlinux(b)
	})
}

func BenchmarkZeroText(b *testing.B) {
	m, err := Build(bzImage(b, newSample().elf(), "gzip"))
	if err != nil {
		b.Fatal(err)
	}
	ranges, buf := m.RunTime(), make([]byte, Granule)
	for b.Loop() {
		Zero(buf, Granule, ranges)
	}
}
