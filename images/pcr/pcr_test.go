package pcr_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"portcullis/images/pcr"
	"portcullis/images/uki"
	"portcullis/images/uki/ukitest"
)

func image(t *testing.T, change func(*uki.Parts)) []byte {
	t.Helper()
	d := ukitest.Get(t)
	p := uki.Parts{OSRelease: []byte("ID=x\n"), Cmdline: "a=1", Uname: "6", Kernel: d.Kernel, Initrd: []byte("initrd")}
	if change != nil {
		change(&p)
	}
	b, err := uki.Build(d.Stub, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExtend(t *testing.T) {
	var v pcr.Value
	digest := sha256.Sum256([]byte("event"))
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	if got := v.Extend(digest); got != want || v.Measure([]byte("event")) != want {
		t.Errorf("%s, want %x", got, want)
	}
}

// Each part of the image moves the registers that are to show it, and no other.
func TestPredictFollowsEveryPart(t *testing.T) {
	base, err := pcr.Predict(image(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if base.Map()["12"] != strings.Repeat("0", 64) || len(base.Map()) != 3 {
		t.Errorf("%v", base.Map())
	}
	for _, row := range []struct {
		part      string
		change    func(*uki.Parts)
		in9, in11 bool
	}{
		{"nothing", func(*uki.Parts) {}, false, false},
		{"command line", func(p *uki.Parts) { p.Cmdline += " b" }, true, true},
		{"spaces at its end", func(p *uki.Parts) { p.Cmdline += "  " }, false, true},
		{"initrd", func(p *uki.Parts) { p.Initrd = []byte("Initrd") }, true, true},
		{"zeros at its end", func(p *uki.Parts) { p.Initrd = []byte("initrd\x00\x00") }, false, true},
		{"release", func(p *uki.Parts) { p.OSRelease = []byte("ID=y\n") }, true, true},
		{"uname", func(p *uki.Parts) { p.Uname = "7" }, false, true},
		{"kernel", func(p *uki.Parts) {
			p.Kernel = append(bytes.Clone(p.Kernel[:len(p.Kernel)-1]), ^p.Kernel[len(p.Kernel)-1])
		}, false, true},
	} {
		got, err := pcr.Predict(image(t, row.change))
		if err != nil {
			t.Fatal(err)
		}
		if (got.PCR9 != base.PCR9) != row.in9 || (got.PCR11 != base.PCR11) != row.in11 || got.PCR12 != base.PCR12 {
			t.Errorf("%s: %v, before %v", row.part, got, base)
		}
	}
}

func TestPredictRefuses(t *testing.T) {
	good := image(t, nil)
	edit := func(old, new string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("%q is not in the image", old)
		}
		return bytes.Replace(good, []byte(old), []byte(new), 1)
	}
	stub := ukitest.Get(t).Stub
	for name, b := range map[string][]byte{
		"nothing":                        nil,
		"the stub alone":                 stub,
		"stub of another systemd":        edit("LoaderInfo: systemd-stub 257", "LoaderInfo: systemd-stub 258"),
		"no version":                     edit("LoaderInfo: systemd-stub", "LoaderInfo: systemd-boot"),
		"command line with a tab":        edit("a=1", "a\t1"),
		"command line section renamed":   edit(".cmdline", ".cmdlinE"),
		"release section renamed":        edit(".osrel\x00\x00", ".osreL\x00\x00"),
		"section that is acted upon too": edit(".uname\x00\x00", ".ucode\x00\x00"),
	} {
		if p, err := pcr.Predict(b); err == nil {
			t.Errorf("%s: predicted %v", name, p)
		}
	}
}

func TestValueIsHex(t *testing.T) {
	v := pcr.Value{0xab}
	if b, err := hex.DecodeString(v.String()); err != nil || !bytes.Equal(b, v[:]) {
		t.Errorf("%s", v)
	}
}
