package modtext

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"portcullis/images/textpatch"
)

// kind is a class of sites.
type kind uint8

const (
	jumpLabel kind = iota
	staticCall
	lockPrefix
	returnSite
	retpoline
	directCall
	endbr
	callPadding
	fixed // any bytes, but always the same
)

// atRunTime tells whether the site changes while the module is loaded.
func (k kind) atRunTime() bool { return k <= lockPrefix }

type site struct {
	off    uint32
	length uint16
	kind   kind
	reg    uint8 // of a retpoline: number of the register
	target place // of a jump label
}

// siteTables are the sections that name sites.
var siteTables = map[string]bool{"__jump_table": true, ".static_call_sites": true, ".smp_locks": true, ".return_sites": true, ".retpoline_sites": true,
	".call_sites": true, ".ibt_endbr_seal": true, ".altinstructions": true, "__patchable_function_entries": true, "__mcount_loc": true}

var (
	endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}
	sealed  = []byte{0x66, 0x0f, 0x1f, 0x00}
)

// allSites reads every table.
func (o *opener) allSites() error {
	for i, s := range o.f.Sections {
		if s.Name == ".parainstructions" && s.Size > 0 || s.Name == ".cfi_sites" && s.Size > 0 {
			return fmt.Errorf("section %s: sites of another kernel than Linux 6.12 of Debian", s.Name)
		}
		if !siteTables[s.Name] || s.Size == 0 {
			continue
		}
		if err := o.table(i, s); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	for i := range o.m.parts {
		p := &o.m.parts[i]
		if o.m.Sections[p.section].Name == ".static_call.text" {
			for at := 0; at+8 <= len(p.stock); at += 4 {
				if bytes.Equal(p.stock[at+5:at+8], textpatch.TrampolineEnd) {
					p.sites = append(p.sites, site{off: uint32(at), length: 5, kind: staticCall})
				}
			}
		}
		p.settle()
	}
	return nil
}

// Sizes of entries: of struct jump_entry, static_call_site, alt_instr; of a 32-bit
// offset and an address else.
var entrySize = map[string]uint64{"__jump_table": 16, ".static_call_sites": 8, ".altinstructions": 14, "__patchable_function_entries": 8, "__mcount_loc": 8}

// table adds the sites of one table. What it says of code that is not kept is passed over.
func (o *opener) table(index int, s *elf.Section) error {
	size := max(entrySize[s.Name], 4)
	if s.Size%size != 0 || s.Size/size > maxEntries {
		return fmt.Errorf("%d bytes are no list of entries of %d bytes", s.Size, size)
	}
	data, err := s.Data()
	if err != nil {
		return err
	}
	at := map[uint32]place{} // by offset in the table: what is named there
	for _, r := range o.relas[index] {
		y := o.m.symbols[r.symbol]
		at[r.off] = place{y.section, y.value + uint64(r.addend)}
	}
	for off := uint64(0); off < s.Size; off += size {
		to, ok := at[uint32(off)]
		if !ok {
			return fmt.Errorf("entry at +%#x has no relocation", off)
		}
		p, code := o.code(to)
		if p == nil {
			continue
		}
		x := site{off: uint32(to.value)}
		if err := o.describe(&x, s.Name, p, code, at[uint32(off)+4], data[off:off+size]); err != nil {
			return fmt.Errorf("entry at +%#x: %w", off, err)
		}
		if x.length > 0 {
			p.sites = append(p.sites, x)
		}
	}
	return nil
}

// code is the text from a place on.
func (o *opener) code(at place) (*part, []byte) {
	for i := range o.m.parts {
		if p := &o.m.parts[i]; int32(p.section) == at.section && at.value < uint64(len(p.stock)) {
			return p, p.stock[at.value:]
		}
	}
	return nil, nil
}

// describe fills in a site that table names; second is what the entry's second field
// names. A length of 0 means: nothing is patched there that is left out.
func (o *opener) describe(x *site, table string, p *part, code []byte, second place, entry []byte) error {
	odd := fmt.Errorf("no such site: %x", code[:min(len(code), 8)])
	_, branch, _ := textpatch.Branch(0, code)
	set := func(k kind, n int) error {
		if n == 0 || n > len(code) {
			return odd
		}
		x.kind, x.length = k, uint16(n)
		return nil
	}
	switch table {
	case "__jump_table":
		x.target = second
		switch {
		case bytes.HasPrefix(code, textpatch.Nop5):
			branch = 5
		case bytes.HasPrefix(code, textpatch.Nop2):
			branch = 2
		}
		if second.section < 0 || branch != 2 && branch != 5 {
			return odd
		}
		return set(jumpLabel, branch)
	case ".static_call_sites":
		if branch < 5 {
			return odd
		}
		return set(staticCall, branch)
	case ".smp_locks":
		if code[0] != 0xf0 && code[0] != 0x3e {
			return nil // another prefix stands before it: the kernel leaves it
		}
		return set(lockPrefix, 1)
	case ".return_sites":
		if code[0] != 0xe9 {
			return set(fixed, max(branch, 1))
		}
		return set(returnSite, branch)
	case ".retpoline_sites":
		reg, ok := register(o.m.symbols, p.relocs, x.off, branch)
		if !ok || branch < 5 || code[0] == 0x0f {
			return set(fixed, max(branch, 5))
		}
		x.reg = reg
		return set(retpoline, branch)
	case ".call_sites":
		if code[0] != 0xe8 {
			return set(fixed, max(branch, 5))
		}
		return set(directCall, branch)
	case ".ibt_endbr_seal":
		if !bytes.HasPrefix(code, endbr64) {
			return odd
		}
		return set(endbr, 4)
	case ".altinstructions":
		if entry[12] == 0 {
			return nil
		}
		return set(fixed, int(entry[12]))
	case "__patchable_function_entries": // the padding before a function
		return set(callPadding, min(16, len(code)))
	case "__mcount_loc":
		if !bytes.HasPrefix(code, []byte{0xe8}) && !bytes.HasPrefix(code, textpatch.Nop5) || len(code) < 5 {
			return odd
		}
		copy(code, textpatch.Nop5)
		p.drop(x.off, 5)
		return nil
	}
	return odd
}

// drop takes away the relocations of n bytes.
func (p *part) drop(off uint32, n uint32) {
	from, _ := slices.BinarySearchFunc(p.relocs, off, func(r reloc, at uint32) int { return cmp.Compare(r.off, at) })
	to := from
	for to < len(p.relocs) && p.relocs[to].off < off+n {
		to++
	}
	p.relocs = slices.Delete(p.relocs, from, to)
}

var registers = []string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// register is the one through which the thunk goes that the branch at off calls.
func register(symbols []symbol, relocs []reloc, off uint32, n int) (uint8, bool) {
	i, ok := slices.BinarySearchFunc(relocs, off+uint32(n)-4, func(r reloc, at uint32) int { return cmp.Compare(r.off, at) })
	if !ok || n < 5 {
		return 0, false
	}
	name, ok := strings.CutPrefix(symbols[relocs[i].symbol].name, "__x86_indirect_thunk_")
	reg := slices.Index(registers, name)
	return uint8(max(reg, 0)), ok && reg >= 0
}

// settle sorts the sites and makes sure that no two overlap: what is patched at run
// time keeps its bytes, what is fixed takes all others.
func (p *part) settle() {
	order := func(a, b site) int {
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.kind, b.kind), cmp.Compare(b.length, a.length))
	}
	owner := make([]uint8, len(p.stock)) // of each byte: 0 none, 1 a site with forms, 2 fixed, 3 at run time
	paint := func(x site, as uint8) {
		for i := x.off; i < x.off+uint32(x.length); i++ {
			owner[i] = max(owner[i], as)
		}
	}
	slices.SortFunc(p.sites, order)
	p.sites = slices.CompactFunc(p.sites, func(a, b site) bool { return a.off == b.off && a.kind == b.kind })
	for _, x := range p.sites {
		switch {
		case x.kind.atRunTime():
			paint(x, 3)
		case x.kind == fixed:
			paint(x, 2)
		}
	}
	// A site with forms that touches another one is fixed, as far as it is its own.
	var out []site
	for _, x := range p.sites {
		if x.kind.atRunTime() {
			out = append(out, x)
		} else if x.kind != fixed {
			mine := owner[x.off : x.off+uint32(x.length)]
			if bytes.ContainsFunc(mine, func(r rune) bool { return r != 0 }) {
				paint(x, 2)
				continue
			}
			paint(x, 1)
			out = append(out, x)
		}
	}
	for i := 0; i < len(owner); i++ {
		n := i
		for n < len(owner) && owner[n] == 2 && n-i < 1<<15 {
			n++
		}
		if n > i {
			out = append(out, site{off: uint32(i), length: uint16(n - i), kind: fixed})
			i = n - 1
		}
	}
	slices.SortFunc(out, order)
	p.sites = slices.Clone(out)
}

func rel32(b []byte) int64 { return int64(int32(binary.LittleEndian.Uint32(b))) }
