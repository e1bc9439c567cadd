package modtext

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"portcullis/images/deb/debtest"
	"portcullis/images/ktextmask"
	"portcullis/images/modlist"
	"portcullis/images/textpatch"
)

// TestRealModules loads modules of Debian's kernel as the kernel does, by a linker of its
// own, and looks that nothing is odd, and that what is changed afterwards is.
func TestRealModules(t *testing.T) {
	r := boot(t)
	for _, s := range []string{"__fentry__", "__x86_return_thunk", "kfree", "pcpu_hot"} {
		if a, ok := r.kernel.Lookup(s); !ok || a < 0xffffffff81000000 != (s == "pcpu_hot") {
			t.Errorf("%s is at %#x, %t", s, a, ok)
		}
	}
	for _, n := range realNames {
		m := r.modules[n]
		if odd, fixed := r.check(m); odd != "" {
			t.Errorf("%s: %s", n, odd)
		} else {
			r.tamper(m, fixed)
		}
	}
}

var realNames = []string{"bridge", "stp", "llc", "x_tables", "ip_tables"}

// boot loads the modules.
func boot(t testing.TB) *realKernel {
	t.Helper()
	image, files := debtest.CloudKernel(t, "../../build/cache", realNames)
	vmlinux, err := ktextmask.Vmlinux(image)
	if err != nil {
		t.Fatal(err)
	}
	list, err := BuildExports(vmlinux)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := ParseExports(list)
	if err != nil {
		t.Fatal(err)
	}
	r := &realKernel{t: t, kernel: kernel, modules: map[string]*realModule{}, next: 0xffffffffc0000000}
	for _, n := range realNames {
		r.place(n, files[n])
	}
	for _, m := range r.modules {
		m.text = r.relocate(m)
	}
	return r
}

type realKernel struct {
	t       testing.TB
	kernel  *Exports
	modules map[string]*realModule
	next    uint64
}

type realModule struct {
	name   string
	file   *elf.File
	m      *Module
	layout Layout
	addr   map[elf.SectionIndex]uint64
	text   [][]byte // of each part
	unseen Unseen
}

// place gives every section an address.
func (r *realKernel) place(name string, ko []byte) {
	m, err := Open(ko)
	if err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		r.t.Fatal(err)
	}
	x := &realModule{name: name, file: f, m: m, addr: map[elf.SectionIndex]uint64{}}
	for i, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 {
			align := max(s.Addralign, 1)
			r.next = (r.next + align - 1) / align * align
			x.addr[elf.SectionIndex(i)] = r.next
			r.next += s.Size
		}
	}
	r.next = (r.next + 0x2fff) &^ 0xfff
	for _, s := range m.Sections {
		for i, a := range x.addr {
			if f.Sections[i].Name == s.Name {
				x.layout = append(x.layout, a)
			}
		}
	}
	if err := m.CheckLayout(x.layout); err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	r.modules[name] = x
}

// relocate applies all relocations of the text.
func (r *realKernel) relocate(x *realModule) (text [][]byte) {
	symbols, err := x.file.Symbols()
	if err != nil {
		r.t.Fatal(err)
	}
	le := binary.LittleEndian
	for _, p := range x.m.parts {
		name := x.m.Sections[p.section].Name
		b := bytes.Clone(p.stock)
		text = append(text, b)
		rela := x.file.Section(".rela" + name)
		if rela == nil {
			continue
		}
		data, err := rela.Data()
		if err != nil {
			r.t.Fatal(err)
		}
		for ; len(data) > 0; data = data[24:] {
			off, info, addend := le.Uint64(data), le.Uint64(data[8:]), le.Uint64(data[16:])
			at := x.layout[p.section] + off
			v := r.symbol(x, symbols[info>>32-1]) + addend
			if bytes.HasPrefix(p.stock[max(off, 1)-1:], textpatch.Nop5) {
				continue // a function's entry, which is a NOP by now
			}
			switch elf.R_X86_64(info & (1<<32 - 1)) {
			case elf.R_X86_64_64:
				le.PutUint64(b[off:], v)
			case elf.R_X86_64_32, elf.R_X86_64_32S:
				le.PutUint32(b[off:], uint32(v))
			case elf.R_X86_64_PC32, elf.R_X86_64_PLT32:
				le.PutUint32(b[off:], uint32(v-at))
			case elf.R_X86_64_PC64:
				le.PutUint64(b[off:], v-at)
			default:
				r.t.Fatalf("%s: relocation %d", x.name, info&(1<<32-1))
			}
		}
	}
	return text
}

// symbol is the address of a symbol; that of a per-CPU variable is small.
func (r *realKernel) symbol(x *realModule, s elf.Symbol) uint64 {
	local := func(x *realModule, s elf.Symbol) uint64 {
		if x.file.Sections[s.Section].Name == ".data..percpu" {
			return 0x30000 + s.Value
		}
		return x.addr[s.Section] + s.Value
	}
	if s.Section != elf.SHN_UNDEF {
		return local(x, s)
	}
	if a, ok := r.kernel.Lookup(s.Name); ok {
		return a
	}
	for _, d := range x.m.Depends {
		symbols, err := r.modules[d].file.Symbols()
		if err != nil {
			r.t.Fatal(err)
		}
		for _, y := range symbols {
			if y.Name == s.Name && y.Section != elf.SHN_UNDEF && elf.ST_BIND(y.Info) == elf.STB_GLOBAL {
				return local(r.modules[d], y)
			}
		}
	}
	r.t.Fatalf("%s: nobody exports %s", x.name, s.Name)
	return 0
}

func (r *realKernel) check(x *realModule) (odd string, fixed []uint64) {
	for i := range x.m.Pieces() {
		res := r.piece(x, i)
		if res.Odd != "" || res.Unknown || res.Moving {
			return res.Odd + " and so on", nil
		}
		x.unseen = res.Unseen
		fixed = append(fixed, res.Fixed)
	}
	return "", fixed
}

func (r *realKernel) piece(x *realModule, i int) Result {
	inKernel := func(a uint64) bool { return a>>24 == 0xffffffff81 }
	_, offset, size := x.m.Piece(i)
	return x.m.Check(World{Layout: x.layout, Kernel: r.kernel, Unseen: x.unseen, KernelText: inKernel, Whole: func() bool { return true },
		Text: func(a uint64) bool { return inKernel(a) || x.m.Holds(x.layout, a) },
		Export: func(name string) Symbol {
			for _, d := range x.m.Depends {
				if s, ok := r.modules[d].m.Export(r.modules[d].layout, name); ok {
					return s
				}
			}
			return Symbol{}
		}}, i, x.text[x.m.pieces[i].part][offset:offset+size])
}

// tamper changes bytes here and there, as a hook would: a breakpoint, or another byte.
func (r *realKernel) tamper(x *realModule, fixed []uint64) {
	for i := range x.m.Pieces() {
		p := x.m.pieces[i]
		text := x.text[p.part]
		for at := p.from; at < p.to; at += 29 {
			was := text[at]
			if text[at] = 0xcc; was == 0xcc {
				text[at] = 0x0f
			}
			if res := r.piece(x, i); res.Odd == "" && !res.Moving && res.Fixed == fixed[i] && !movable(x.m.parts[p.part].sites, at) {
				r.t.Errorf("%s: %s+%#x: a changed byte is not seen", x.name, x.m.Sections[x.m.parts[p.part].section].Name, at)
			}
			text[at] = was
		}
	}
}

// movable tells whether the byte is in a static call, which may go to another place.
func movable(sites []site, at uint32) bool {
	for _, s := range sites {
		if s.kind == staticCall && at > s.off && at < s.off+uint32(s.length) {
			return true
		}
	}
	return false
}

// BenchmarkCheck is one piece of a module of Debian's.
func BenchmarkCheck(b *testing.B) {
	r := boot(b)
	x := r.modules["bridge"]
	b.SetBytes(PieceSize)
	for i := 0; b.Loop(); i++ {
		r.piece(x, i%x.m.Pieces())
	}
}

func BenchmarkOpen(b *testing.B) {
	_, files := debtest.CloudKernel(b, "../../build/cache", []string{"bridge"})
	if _, err := modlist.Unpack(files["bridge"]); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Open(files["bridge"]); err != nil {
			b.Fatal(err)
		}
	}
}
