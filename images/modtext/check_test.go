package modtext

import (
	"encoding/binary"
	"strings"
	"testing"

	"portcullis/images/modtext/modtest"
	"portcullis/images/textpatch"
)

const (
	kernelBase = modtest.KernelBase
	textAt     = modtest.TextAt
	depends    = "other-one"
)

// loaded is the sample as the kernel has it in memory.
type loaded struct {
	t    testing.TB
	m    *Module
	text []byte
	w    World
}

func load(t testing.TB) *loaded {
	t.Helper()
	m, err := Open(modtest.Module(depends))
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := ParseExports(modtest.Exports)
	if err != nil {
		t.Fatal(err)
	}
	l := &loaded{t: t, m: m, text: modtest.Text(depends), w: World{Kernel: kernel,
		Export: func(name string) Symbol {
			if name == "helper" {
				return Symbol{Address: modtest.HelperAt}
			}
			return Symbol{}
		},
		KernelText: func(a uint64) bool { return a >= kernelBase && a-kernelBase < 0x10000 },
		Whole:      func() bool { return true }}}
	l.w.Text = func(a uint64) bool { return l.w.KernelText(a) || m.Holds(l.w.Layout, a) }
	for _, s := range m.Sections {
		l.w.Layout = append(l.w.Layout, map[bool]uint64{true: textAt, false: modtest.DataAt}[s.Text])
	}
	if err := m.CheckLayout(l.w.Layout); err != nil {
		t.Fatal(err)
	}
	return l
}

// check checks all pieces and returns what was odd in the first that was.
func (l *loaded) check() (all Result) {
	l.t.Helper()
	for i := range l.m.Pieces() {
		_, offset, size := l.m.Piece(i)
		r := l.m.Check(l.w, i, l.text[offset:offset+size])
		all.Fixed ^= r.Fixed * uint64(i+1)
		l.w.Unseen = r.Unseen
		all.Unknown, all.Moving = all.Unknown || r.Unknown, all.Moving || r.Moving
		if all.Odd == "" {
			all.Odd, all.Offset = r.Odd, r.Offset
		}
	}
	return all
}

func TestCheck_TheModuleAsItsFileSays(t *testing.T) {
	l := load(t)
	if r := l.check(); r.Odd != "" || r.Unknown || r.Moving {
		t.Errorf("%+v", r)
	}
	if n := l.w.Unseen[inUnseen]; n != modtest.PerCPUAt {
		t.Errorf("per-CPU variables at %#x", n)
	}
	if s, ok := l.m.Export(l.w.Layout, "own"); !ok || s.Address != textAt+0x10 {
		t.Errorf("%+v, %t", s, ok)
	}
	if len(l.m.Depends) != 1 || l.m.Depends[0] != "other_one" {
		t.Errorf("depends on %v", l.m.Depends)
	}
}

// Every site may hold each of its forms, and nothing else.
func TestCheck_FormsOfSites(t *testing.T) {
	jmp := func(op byte, at int, to uint64) string {
		return string(binary.LittleEndian.AppendUint32([]byte{op}, uint32(to-(textAt+uint64(at)+5))))
	}
	nops := func(n int) string { return strings.Repeat("\x90", n) }
	for name, c := range map[string]struct {
		at    int
		code  string
		legal bool
	}{
		"label: jump to its target":         {0x20, jmp(0xe9, 0x20, textAt+0x100), true},
		"label: jump elsewhere":             {0x20, jmp(0xe9, 0x20, textAt+0x101), false},
		"label: call":                       {0x20, jmp(0xe8, 0x20, textAt+0x100), false},
		"short label: jump to its target":   {0x28, "\xeb\x16", true},
		"short label: jump elsewhere":       {0x28, "\xeb\x17", false},
		"static call: into the kernel":      {0x30, jmp(0xe8, 0x30, kernelBase+0x1234), true},
		"static call: into the module":      {0x30, jmp(0xe8, 0x30, textAt+0x100), true},
		"static call: nothing":              {0x30, string(textpatch.Nop5), true},
		"static call: zero":                 {0x30, string(textpatch.Zero5), true},
		"static call: elsewhere":            {0x30, jmp(0xe8, 0x30, kernelBase+0x10000), false},
		"static call: behind the module":    {0x30, jmp(0xe8, 0x30, textAt+modtest.TextSize), false},
		"lock: on one processor":            {0x38, "\x3e", true},
		"lock: none":                        {0x38, "\x90", false},
		"return":                            {0x40, string(textpatch.Return5), true},
		"return: other thunk":               {0x40, jmp(0xe9, 0x40, kernelBase+0x480), true},
		"return: into the module":           {0x40, jmp(0xe9, 0x40, textAt), false},
		"return: code behind it":            {0x40, "\xc3\xcc\xcc\xcc\x90", false},
		"return across pieces":              {0xffe, string(textpatch.Return5), true},
		"return across pieces: odd":         {0xffe, "\xc3\xcc\xcc\xcc\x90", false},
		"retpoline: call r11":               {0x48, "\x41\xff\xd3\x0f\x1f\x00", true},
		"retpoline: lfence":                 {0x48, "\x0f\xae\xe8\x41\xff\xd3", true},
		"retpoline: call r10":               {0x48, "\x41\xff\xd2\x0f\x1f\x00", false},
		"retpoline: jmp r11":                {0x48, "\x41\xff\xe3\x0f\x1f\x00", false},
		"retpoline: call rbx":               {0x48, "\xff\xd3\x0f\x1f\x40\x00", false},
		"retpoline: code behind it":         {0x48, "\x41\xff\xd3\x0f\x0b\x90", false},
		"retpoline: other thunk":            {0x48, "\x2e" + jmp(0xe8, 0x49, kernelBase+0x380), true},
		"retpoline: user space":             {0x48, "\x2e" + jmp(0xe8, 0x49, textAt-0x60000000), false},
		"call: counted":                     {0x50, jmp(0xe8, 0x50, kernelBase+0x500-9), true},
		"call: behind the function's start": {0x50, jmp(0xe8, 0x50, kernelBase+0x501), false},
		"call: too far before":              {0x50, jmp(0xe8, 0x50, kernelBase+0x500-17), false},
		"call: jump":                        {0x50, jmp(0xe9, 0x50, kernelBase+0x500), false},
		"padding: counts":                   {0, nops(7) + "\x65\x48\xc1\x3d\x01\x02\x03\x04\x05", true},
		"padding: code":                     {0, nops(12) + "\x0f\x0b\x90\x90", false},
		"endbr: sealed":                     {0x10, string(sealed), true},
		"endbr: jump":                       {0x10, "\xeb\x10\x90\x90", false},
		"function entry: call":              {0x14, jmp(0xe8, 0x14, kernelBase+0x200), false},
		"alternative":                       {0x58, "\x0f\x01\xca", true},
		"other code":                        {0x5b, "\x90", false},
		"address of data":                   {0x60, "\x09", false},
		"address of another module":         {0x68, "\x41", false},
		"per-CPU variables: two addresses":  {0x74, "\x11", false},
	} {
		l := load(t)
		copy(l.text[c.at:], c.code)
		r := l.check()
		if legal := r.Odd == ""; legal != c.legal || r.Unknown || r.Moving {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// Whatever byte is changed, it shows: it is odd, or it is in what must not change, or it
// is read again because it might be a site that is being patched.
func TestCheck_EveryByteCounts(t *testing.T) {
	l := load(t)
	before := l.check()
	for i := range l.text {
		for _, with := range []byte{l.text[i] ^ 1, l.text[i] ^ 0x80, 0xcc} {
			was := l.text[i]
			if with == was {
				continue
			}
			l.text[i] = with
			r := l.check()
			if r.Odd == "" && r.Fixed == before.Fixed && !r.Moving && (i < 0x30 || i > 0x34) { // a static call may go elsewhere in the kernel
				t.Errorf("+%#x: %#x instead of %#x is not seen", i, with, was)
			}
			l.text[i] = was
		}
	}
}

func TestCheck_WhatIsNotKnownYet(t *testing.T) {
	l := load(t)
	l.w.Export = func(string) Symbol { return Symbol{Later: true} }
	if r := l.check(); !r.Unknown || r.Odd != "" {
		t.Errorf("an export of a module that is not known: %+v", r)
	}
	l = load(t)
	l.w.Whole = func() bool { return false }
	modtest.Branch(l.text, 0x30, textAt+0x100000)
	if r := l.check(); !r.Unknown || r.Odd != "" {
		t.Errorf("a static call into a module that is not known: %+v", r)
	}
	l = load(t)
	l.text[0x20] = 0xcc
	if r := l.check(); !r.Moving || r.Odd != "" {
		t.Errorf("a label that is being patched: %+v", r)
	}
}

func TestCheckLayout(t *testing.T) {
	l := load(t)
	for name, edit := range map[string]func(Layout) Layout{
		"missing": func(l Layout) Layout { return l[1:] },
		"user":    func(l Layout) Layout { l[0] = 0x400000; return l },
		"kernel":  func(l Layout) Layout { l[0] = kernelBase; return l },
		"end":     func(l Layout) Layout { l[0] = areaEnd - 0x1000; return l },
		"odd":     func(l Layout) Layout { l[0] += 8; return l },
	} {
		if err := l.m.CheckLayout(edit(append(Layout(nil), l.w.Layout...))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(modtest.Module(depends))
	f.Add(modtest.Module(depends)[:800])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Open(b)
		if err != nil {
			return
		}
		l := load(t)
		w := l.w
		w.Layout = make(Layout, len(m.Sections))
		for i := range m.Pieces() {
			_, _, size := m.Piece(i)
			m.Check(w, i, make([]byte, size))
		}
	})
}

func FuzzCheck(f *testing.F) {
	f.Add(0x40, textpatch.Return5)
	f.Add(0x48, []byte{0x41, 0xff, 0xd3})
	f.Fuzz(func(t *testing.T, at int, code []byte) {
		l := load(t)
		if at >= 0 && at < len(l.text) {
			copy(l.text[at:], code)
			l.check()
		}
	})
}
