package uki_test

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"portcullis/images/uki"
	"portcullis/images/uki/ukitest"
)

func parts(t testing.TB) (stub []byte, p uki.Parts) {
	t.Helper()
	d := ukitest.Get(t)
	return d.Stub, uki.Parts{
		OSRelease: []byte("ID=portcullis-test\n"),
		Cmdline:   "roothash=00 console=ttyS0",
		Uname:     "6.12.0-test",
		Kernel:    d.Kernel,
		Initrd:    bytes.Repeat([]byte("initrd"), 1001),
	}
}

func build(t testing.TB) []byte {
	t.Helper()
	stub, p := parts(t)
	image, err := uki.Build(stub, p)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// debug/pe of the standard library is a second reader of what Build writes.
func TestBuildIsReadByAnotherParser(t *testing.T) {
	stub, p := parts(t)
	image := build(t)
	if !bytes.Equal(image, build(t)) {
		t.Error("two builds of the same parts differ")
	}
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	old, err := pe.NewFile(bytes.NewReader(stub))
	if err != nil {
		t.Fatal(err)
	}
	opt := f.OptionalHeader.(*pe.OptionalHeader64)
	if opt.CheckSum != 0 {
		t.Error("there is a checksum")
	}
	for i, s := range old.Sections {
		a, _ := s.Data()
		b, err := f.Sections[i].Data()
		if err != nil || !bytes.Equal(a, b) || s.SectionHeader != f.Sections[i].SectionHeader {
			t.Errorf("section %s of the stub changed", s.Name)
		}
	}
	want := map[string][]byte{".osrel": p.OSRelease, ".cmdline": []byte(p.Cmdline), ".uname": []byte(p.Uname), ".linux": p.Kernel, ".initrd": p.Initrd}
	end := uint32(0)
	for i, s := range f.Sections {
		if s.VirtualAddress < end || s.VirtualAddress%opt.SectionAlignment != 0 || s.Offset%opt.FileAlignment != 0 || s.Size%opt.FileAlignment != 0 {
			t.Errorf("section %s is at %#x in memory and %#x in the file", s.Name, s.VirtualAddress, s.Offset)
		}
		end = s.VirtualAddress + max(s.VirtualSize, s.Size)
		if i < len(old.Sections) {
			continue
		}
		data, err := s.Data()
		if err != nil || !bytes.Equal(data[:s.VirtualSize], want[s.Name]) {
			t.Errorf("section %s has other content: %v", s.Name, err)
		}
		delete(want, s.Name)
	}
	if len(want) != 0 || opt.SizeOfImage < end || opt.SizeOfImage%opt.SectionAlignment != 0 {
		t.Errorf("missing %v, SizeOfImage %#x, end %#x", want, opt.SizeOfImage, end)
	}
}

func TestDescribe(t *testing.T) {
	_, p := parts(t)
	info, err := uki.Describe(build(t))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(info.StubVersion, "257.") {
		t.Errorf("stub version %q", info.StubVersion)
	}
	if !strings.HasPrefix(info.KernelVersion, "6.12.") || !strings.HasSuffix(info.KernelVersion, "-cloud-amd64") {
		t.Errorf("kernel version %q", info.KernelVersion)
	}
	var names []string
	for _, s := range info.Sections {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != ".linux .osrel .cmdline .initrd .uname .sbat" {
		t.Errorf("sections %s", got)
	}
	sum := sha256.Sum256([]byte(p.Cmdline))
	if s := info.Sections[2]; s.SHA256 != hex.EncodeToString(sum[:]) || s.Size != int64(len(p.Cmdline)) {
		t.Errorf("%+v", s)
	}
}

// The kernel of the package is signed: its digest must be the one inside the signature.
func TestAuthenticodeIsWhatDebianSigned(t *testing.T) {
	kernel := ukitest.Get(t).Kernel
	sum, err := uki.Authenticode(kernel)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(kernel))
	if err != nil {
		t.Fatal(err)
	}
	cert := f.OptionalHeader.(*pe.OptionalHeader64).DataDirectory[4]
	if cert.Size == 0 {
		t.Fatal("the kernel is not signed; this test needs another reference")
	}
	if !bytes.Contains(kernel[cert.VirtualAddress:], sum[:]) {
		t.Fatalf("%x does not occur in the signature", sum)
	}
}

func TestBuildRefuses(t *testing.T) {
	stub, good := parts(t)
	image := build(t)
	for name, try := range map[string]func() error{
		"a UKI as the stub":       func() error { _, err := uki.Build(image, good); return err },
		"a signed stub":           func() error { _, err := uki.Build(signed(stub), good); return err },
		"a kernel as the stub":    func() error { _, err := uki.Build(good.Kernel, good); return err },
		"a cut stub":              func() error { _, err := uki.Build(stub[:1000], good); return err },
		"no stub":                 func() error { _, err := uki.Build(nil, good); return err },
		"no kernel":               func() error { p := good; p.Kernel = nil; _, err := uki.Build(stub, p); return err },
		"a kernel without a stub": func() error { p := good; p.Kernel = []byte("ELF"); _, err := uki.Build(stub, p); return err },
		"no initrd":               func() error { p := good; p.Initrd = nil; _, err := uki.Build(stub, p); return err },
		"no command line":         func() error { p := good; p.Cmdline = ""; _, err := uki.Build(stub, p); return err },
		"line feed in it":         func() error { p := good; p.Cmdline += "\n"; _, err := uki.Build(stub, p); return err },
		"NUL in it":               func() error { p := good; p.Cmdline += "\x00x"; _, err := uki.Build(stub, p); return err },
		"no release":              func() error { p := good; p.OSRelease = nil; _, err := uki.Build(stub, p); return err },
		"long section name": func() error {
			_, err := uki.Append(stub, []uki.Section{{Name: ".ninechar", Data: []byte("x")}})
			return err
		},
		"section of the stub": func() error {
			_, err := uki.Append(stub, []uki.Section{{Name: ".text", Data: []byte("x")}})
			return err
		},
		"too many sections": func() error {
			var many []uki.Section
			for c := 'a'; c <= 'z'; c++ {
				many = append(many, uki.Section{Name: "." + string(c), Data: []byte("x")})
			}
			_, err := uki.Append(stub, many)
			return err
		},
	} {
		if try() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// signed returns image with eight bytes in the place of a certificate.
func signed(image []byte) []byte {
	b := append(bytes.Clone(image), make([]byte, 8)...)
	security := b[64+24+144:] // the stub's PE header is at byte 64
	binary.LittleEndian.PutUint32(security, uint32(len(image)))
	binary.LittleEndian.PutUint32(security[4:], 8)
	return b
}

// An image whose boot measures more than its manifest says is not described.
func TestMeasuredRefusesWhatIsNotPredicted(t *testing.T) {
	stub, _ := parts(t)
	for _, name := range []string{".profile", ".pcrsig", ".ucode", ".dtb"} {
		image, err := uki.Append(stub, []uki.Section{{Name: name, Data: []byte("x")}})
		if err != nil {
			t.Fatal(err)
		}
		f, err := uki.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Measured(); err == nil {
			t.Errorf("%s is passed over", name)
		}
	}
	for name, edit := range map[string]func([]byte){
		"the same section twice":          func(b []byte) { copy(b[bytes.Index(b, []byte(".uname\x00\x00")):], ".osrel\x00\x00") },
		"a section longer than in a file": func(b []byte) { b[bytes.Index(b, []byte(".uname\x00\x00"))+8+2] = 1 },
	} {
		image := build(t)
		edit(image)
		f, err := uki.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Measured(); err == nil {
			t.Errorf("%s is passed over", name)
		}
	}
}

// tiny is a PE32+ image of a kilobyte with two sections, for the fuzzer.
func tiny() []byte {
	b := make([]byte, 2048)
	copy(b, "MZ")
	b[60] = 64
	copy(b[64:], "PE\x00\x00\x64\x86\x02\x00")
	b[64+20] = 240
	opt := b[88:]
	opt[0], opt[1] = 0x0b, 0x02
	opt[33], opt[37] = 0x10, 0x02 // alignments 4096 and 512
	opt[61] = 0x04                // headers of 1024 bytes
	opt[108] = 16
	for i, name := range []string{".sdmagic", ".linux"} {
		s := b[88+240+40*i:]
		copy(s, name)
		s[8], s[9] = 0, 2            // 512 bytes in memory
		s[13] = byte(0x10 * (i + 1)) // at 4096, 8192
		s[17] = 2                    // 512 bytes in the file
		s[21] = byte(4 + 2*i)        // at 1024, 1536
	}
	copy(b[1024:], "#### LoaderInfo: systemd-stub 257.1 ####")
	return b
}

// manySections has nothing wrong but the number of its sections, which are empty.
func manySections() []byte {
	b := append(tiny(), make([]byte, 8192)...)
	b[70], b[88+61] = 97, 0x20
	clear(b[1024:]) // the section table reaches into it now
	for i := range 2 {
		b[88+240+40*i+17] = 0
	}
	return b
}

func TestParseRefuses(t *testing.T) {
	if _, err := uki.Parse(tiny()); err != nil {
		t.Fatal(err)
	}
	set := func(at int, v ...byte) []byte { b := tiny(); copy(b[at:], v); return b }
	for name, data := range map[string][]byte{
		"empty":                        nil,
		"no MZ":                        set(0, 'X'),
		"header far behind":            set(60, 0xff, 0xff, 0xff, 0xff),
		"header at the end":            set(60, 0xf8, 0x07),
		"32 bits":                      set(88, 0x0b, 0x01),
		"more sections than bytes":     set(70, 0xff, 0xff),
		"97 sections":                  manySections(),
		"no optional header":           set(84, 0, 0),
		"no certificate directory":     set(88+108, 4),
		"headers longer than the file": set(88+60, 0xff, 0xff),
		"headers of no length":         set(88+60, 0, 0),
		"certificates in the middle":   append(set(88+144, 0, 4, 0, 0, 8), make([]byte, 8)...),
		"certificates over a section":  set(88+144, 0, 7, 0, 0, 0, 1),
		"section behind the end":       set(88+240+20, 0, 0, 1),
		"section in the headers":       set(88+240+20, 0, 2),
		"sections overlap":             set(88+240+20, 0, 5),
		"section at 4 GB":              set(88+240+12, 0xff, 0xff, 0xff, 0xff),
	} {
		if _, err := uki.Parse(data); !errors.Is(err, uki.ErrNotPE) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Any input is read or refused; what is appended to a readable image comes out again.
func FuzzParse(f *testing.F) {
	f.Add(tiny())
	f.Add([]byte("MZ"))
	f.Add(tiny()[:1500])
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := uki.Parse(data)
		if err != nil {
			if !errors.Is(err, uki.ErrNotPE) {
				t.Fatal(err)
			}
			return
		}
		for _, s := range file.Sections() {
			if len(s.Data) > len(data) {
				t.Fatal("a section is longer than its file")
			}
		}
		if _, err := uki.Authenticode(data); err != nil {
			t.Fatal(err)
		}
		_, _ = uki.Describe(data)
		out, err := uki.Append(data, []uki.Section{{Name: ".new", Data: []byte("content")}})
		if err != nil {
			return
		}
		again, err := uki.Parse(out)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := again.Section(".new"); !ok || string(got) != "content" {
			t.Fatalf("%q", got)
		}
	})
}
