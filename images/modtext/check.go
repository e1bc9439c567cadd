package modtext

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"portcullis/images/textpatch"
)

// Layout is the address of each of a module's Sections, in that order.
type Layout []uint64

// World is what a module's text refers to.
type World struct {
	Layout Layout
	// Kernel is where the kernel's symbols are.
	Kernel *Exports
	// Export is what another module exports under a name.
	Export func(name string) Symbol
	// Text tells whether a branch to a may be: kernel text, or text of a module whose
	// layout is known.
	Text func(a uint64) bool
	// Whole tells whether the layouts of all loaded modules are known.
	Whole func() bool
	// KernelText is Text for kernel text alone.
	KernelText func(a uint64) bool
	// Unseen is what is known of the addresses that the kernel does not show.
	Unseen Unseen
}

// Unseen are addresses that follow from the text alone: of per-CPU variables and of
// empty sections. All places that refer to one must say the same. It is not changed.
type Unseen map[int32]uint64 // by section where it is the module's own, else by symbol

// Symbol is what a module exports; the zero value is nothing.
type Symbol struct {
	Address uint64
	Later   bool // it cannot be said yet: the layout of a module is not known
	Hidden  bool // it is in a section whose address the kernel does not show
}

// Result is what a piece of text was found to be.
type Result struct {
	// Unknown: it refers to a module that has no known layout; nothing else is said.
	Unknown bool
	// Moving: a site was met in the middle of being patched.
	Moving bool
	// Odd says what is not as it must be, and Offset where in the section; empty for
	// nothing.
	Odd    string
	Offset uint64
	// Fixed is a digest of what must not change while the layout is the same.
	Fixed uint64
	// Unseen is World.Unseen, with what this piece says of it.
	Unseen Unseen
}

// CheckLayout says what is wrong with the addresses of a module, or nothing.
func (m *Module) CheckLayout(l Layout) error {
	if len(l) != len(m.Sections) {
		return fmt.Errorf("%d addresses, want %d", len(l), len(m.Sections))
	}
	for i, s := range m.Sections {
		if !s.Text {
			continue
		}
		if !InArea(l[i], s.Size) {
			return fmt.Errorf("%s at %#x, where no module is", s.Name, l[i])
		}
		if l[i]%s.Align != 0 {
			return fmt.Errorf("%s at %#x, which is no multiple of %d", s.Name, l[i], s.Align)
		}
	}
	return nil
}

// Holds tells whether a is in the module's text.
func (m *Module) Holds(l Layout, a uint64) bool {
	for i, s := range m.Sections {
		if s.Text && a >= l[i] && a-l[i] < s.Size {
			return true
		}
	}
	return false
}

// Export is a symbol that the module exports.
func (m *Module) Export(l Layout, name string) (Symbol, bool) {
	p, ok := m.exports[name]
	switch {
	case !ok:
		return Symbol{}, false
	case p.section < 0:
		return Symbol{Hidden: true}, true
	}
	return Symbol{Address: l[p.section] + p.value}, true
}

// Check compares piece i with what it must be. have is what Piece says.
func (m *Module) Check(w World, i int, have []byte) Result {
	at := m.pieces[i]
	p := &m.parts[at.part]
	c := checker{m: m, w: w, p: p, base: w.Layout[p.section], from: at.from, to: at.to, have: have}
	c.res.Unseen = w.Unseen
	if !c.relocate() {
		return Result{Unknown: true, Unseen: w.Unseen}
	}
	c.compare()
	if c.lost {
		return Result{Unknown: true, Unseen: w.Unseen}
	}
	return c.res
}

// checker is one Check.
type checker struct {
	m        *Module
	w        World
	p        *part
	base     uint64 // of the section
	from, to uint32 // the piece
	have     []byte // from from on, with margin
	want     []byte // from start on, with margin before and behind
	start    uint32
	lost     bool // something refers to what is not known yet
	res      Result
}

func (c *checker) odd(off uint32, format string, args ...any) {
	if c.res.Odd == "" {
		c.res.Odd, c.res.Offset = fmt.Sprintf(format, args...), uint64(off)
	}
}

// relocate computes the piece with Margin bytes on both sides.
func (c *checker) relocate() bool {
	c.start = c.from - min(c.from, Margin)
	end := min(int(c.to)+2*Margin, len(c.p.stock))
	c.want = bytes.Clone(c.p.stock[c.start:end])
	i, _ := slices.BinarySearchFunc(c.p.relocs, c.start, func(r reloc, at uint32) int { return cmp.Compare(r.off, at) })
	for ; i < len(c.p.relocs); i++ {
		r := c.p.relocs[i]
		n := uint32(r.size())
		if r.off+n > uint32(end) {
			break
		}
		v, ok := c.value(r)
		if !ok {
			return false
		}
		put(c.want[r.off-c.start:], v, n)
	}
	return true
}

func put(b []byte, v uint64, n uint32) {
	if n == 8 {
		binary.LittleEndian.PutUint64(b, v)
	} else {
		binary.LittleEndian.PutUint32(b, uint32(v))
	}
}

// value computes a relocation as apply_relocate_add does.
func (c *checker) value(r reloc) (uint64, bool) {
	y := c.m.symbols[r.symbol]
	v := y.value
	switch {
	case y.section >= 0:
		v += c.w.Layout[y.section]
	case y.section <= inUnseen:
		base, ok := c.unseen(r, y.section, y.value)
		if !ok {
			return 0, true // in the margin only, where it is not compared
		}
		v += base
	case y.name != "":
		a, ok := c.w.Kernel.Lookup(y.name)
		if !ok {
			e := c.w.Export(y.name)
			if e.Later {
				return 0, false
			}
			if a = e.Address; e.Hidden {
				if a, ok = c.unseen(r, int32(r.symbol), 0); !ok {
					return 0, true
				}
			}
		}
		v = a
	}
	v += uint64(r.addend)
	if r.relative() {
		v -= c.base + uint64(r.off)
	}
	return v, true
}

// unseen is an address that the kernel does not show. It is taken from the text itself,
// once. ok is false in the margin, where nothing is learned.
func (c *checker) unseen(r reloc, key int32, value uint64) (base uint64, ok bool) {
	if base, ok := c.res.Unseen[key]; ok {
		return base, true
	}
	if r.off < c.from && int(r.off)+r.size() > int(c.from) {
		c.lost = true // the piece before this one says it
	}
	if r.off < c.from || r.off >= c.to || int(r.off-c.from)+r.size() > len(c.have) {
		return 0, false
	}
	b := c.have[r.off-c.from:]
	if r.size() == 8 {
		base = binary.LittleEndian.Uint64(b)
	} else {
		base = uint64(rel32(b))
	}
	if r.relative() {
		base += c.base + uint64(r.off)
	}
	base -= uint64(r.addend) + value
	switch empty := key < 0 && c.m.unseen[inUnseen-key]; {
	case empty && !InArea(base, 0):
		base = areaStart // it cannot be there, so that the text differs
	case !empty && r.size() == 4:
		base = uint64(uint32(base)) // per-CPU variables count from zero
	}
	c.res.Unseen = maps.Clone(c.res.Unseen)
	if c.res.Unseen == nil {
		c.res.Unseen = Unseen{}
	}
	c.res.Unseen[key] = base
	return base, true
}

// compare holds the piece against what it must be, site by site and between them.
func (c *checker) compare() {
	settled := sha256.New()
	at := c.from
	i, _ := slices.BinarySearchFunc(c.p.sites, c.from, func(x site, a uint32) int { return cmp.Compare(x.off+uint32(x.length), a+1) })
	for ; i < len(c.p.sites) && c.p.sites[i].off < c.to; i++ {
		x := c.p.sites[i]
		end := x.off + uint32(x.length)
		if x.off > at {
			c.same(at, x.off)
		}
		if !x.kind.atRunTime() {
			settled.Write(c.have[max(x.off, c.from)-c.from : min(end, c.to)-c.from])
		}
		if x.off >= c.from {
			c.form(x)
		}
		at = max(at, end)
	}
	if at < c.to {
		c.same(at, c.to)
	}
	var sum [sha256.Size]byte
	c.res.Fixed = binary.LittleEndian.Uint64(settled.Sum(sum[:0]))
}

func (c *checker) same(from, to uint32) {
	have, want := c.have[from-c.from:to-c.from], c.want[from-c.start:to-c.start]
	if bytes.Equal(have, want) {
		return
	}
	for i := range have {
		if have[i] != want[i] {
			n := min(len(have)-i, 8)
			c.odd(from+uint32(i), "holds %x, must hold %x", have[i:i+n], want[i:i+n])
			return
		}
	}
}

// form checks that a site holds one of its forms.
func (c *checker) form(x site) {
	if x.kind == fixed {
		return
	}
	code := c.have[x.off-c.from:][:x.length]
	want := c.want[x.off-c.start:][:x.length]
	if bytes.Equal(code, want) || c.legal(x, code, want) {
		return
	}
	if x.kind.atRunTime() && code[0] == 0xcc {
		c.res.Moving = true // text_poke_bp puts a breakpoint there first
		return
	}
	if x.kind == staticCall && c.elsewhere(x, code) {
		c.lost = true
		return
	}
	c.odd(x.off, "holds %x, which the kernel does not put there", code)
}

func (c *checker) legal(x site, code, want []byte) bool {
	at := c.base + uint64(x.off)
	to := at + uint64(len(code)) // where a branch with offset 0 goes
	switch x.kind {
	case jumpLabel:
		return textpatch.JumpLabel(at, code, c.w.Layout[x.target.section]+x.target.value)
	case staticCall:
		to, nothing, ok := textpatch.StaticCall(at, code)
		return ok && (nothing || c.w.Text(to))
	case lockPrefix:
		return code[0] == 0xf0 || code[0] == 0x3e
	case returnSite:
		return bytes.Equal(code, textpatch.Return5) || code[0] == 0xe9 && c.w.KernelText(to+uint64(rel32(code[1:])))
	case retpoline:
		return c.indirect(x, code, want, to)
	case directCall: // of the function, or of the padding of 16 bytes before it
		return len(code) == 5 && code[0] == 0xe8 && uint64(rel32(want[1:])-rel32(code[1:])) <= 16
	case callPadding:
		return counted(code)
	case endbr:
		return bytes.Equal(code, endbr64) || bytes.Equal(code, sealed)
	}
	return false
}

// elsewhere tells whether a static call leads to where modules are, and not all of them
// are known yet.
func (c *checker) elsewhere(x site, code []byte) bool {
	to, nothing, ok := textpatch.StaticCall(c.base+uint64(x.off), code)
	return ok && !nothing && !c.w.Whole() && InArea(to, 1)
}

var lfence = []byte{0x0f, 0xae, 0xe8}

// indirect is CALL or JMP through the site's register, with NOPs or INT3 behind it, or
// the same branch to another thunk of the kernel (patch_retpoline).
func (c *checker) indirect(x site, code, want []byte, to uint64) bool {
	op := len(code) - 5 // behind a CS prefix
	if code[op] == want[op] && bytes.Equal(code[:op], want[:op]) {
		a := to + uint64(rel32(code[len(code)-4:]))
		return c.w.KernelText(a) || InArea(a, 1)
	}
	code = bytes.TrimPrefix(code, lfence)
	if x.reg >= 8 {
		if code[0] != 0x41 {
			return false
		}
		code = code[1:]
	}
	modrm := byte(0xd0)
	if want[op] == 0xe9 {
		modrm = 0xe0
	}
	if len(code) < 2 || code[0] != 0xff || code[1] != modrm|x.reg&7 {
		return false
	}
	return padding(code[2:])
}

// counted tells whether the padding before a function holds NOPs, and at its end at most
// what counts the depth of calls: SAR $5 of a variable of the processor
// (skl_call_thunk_template, arch/x86/kernel/callthunks.c).
func counted(code []byte) bool {
	code = bytes.TrimLeft(code, "\x90")
	n := len(code)
	return n == 0 || (n == 9 && bytes.HasPrefix(code, []byte{0x65, 0x48, 0xc1, 0x3d}) ||
		n == 10 && bytes.HasPrefix(code, []byte{0x65, 0x48, 0xc1, 0x3c, 0x25})) && code[n-1] == 5
}

// padding tells whether b is NOPs and INT3.
func padding(b []byte) bool {
	for _, n := range [][]byte{textpatch.Nop5, {0x0f, 0x1f, 0x40, 0x00}, {0x0f, 0x1f, 0x00}, textpatch.Nop2} {
		b = bytes.TrimPrefix(b, n)
	}
	return len(bytes.Trim(b, "\x90\xcc")) == 0
}
