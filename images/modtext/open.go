package modtext

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"portcullis/images/modlist"
)

// Module is what a module file says of the text that it has in memory.
type Module struct {
	// Sections are those that the kernel gives an address and shows it of, in the
	// order of the file.
	Sections []Section
	// Depends are the modules whose symbols it uses.
	Depends []string

	parts   []part
	unseen  []bool // sections whose address is not shown: whether they are empty; the others are per-CPU variables
	pieces  []piece
	symbols []symbol
	exports map[string]place
}

// Section is one section in memory.
type Section struct {
	Name        string
	Size, Align uint64
	Text        bool // is compared: code that stays after the module was initialised
}

// place is a byte of a section of the module.
type place struct {
	section int32 // index of Sections, or of what follows
	value   uint64
}

// What a place is in, beside a section.
const (
	inKernel = -1 - iota // an absolute address, or an export: named
	inNone               // in what is not kept
	inUnseen             // and below: in a section whose address the kernel does not show
)

type symbol struct {
	place
	name string // where it is not the module's own
}

// part is the text of one section.
type part struct {
	section int
	stock   []byte
	relocs  []reloc
	sites   []site // sorted; the ranges of class fixed do not overlap with others
}

type reloc struct {
	off    uint32
	symbol uint32
	kind   elf.R_X86_64
	addend int64
}

// piece is PieceSize bytes of a part, or its rest.
type piece struct {
	part     int
	from, to uint32
}

// Open reads a module file, packed or not. It fails where the text cannot be computed
// for certain.
func Open(ko []byte) (*Module, error) {
	plain, err := modlist.Unpack(ko)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(plain))
	if err != nil {
		return nil, err
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 || f.Type != elf.ET_REL || len(f.Sections) > maxSections {
		return nil, fmt.Errorf("a %s of %s with %d sections is no module of a PC", f.Type, f.Machine, len(f.Sections))
	}
	o := &opener{f: f, m: &Module{exports: map[string]place{}}, index: make([]int32, len(f.Sections)), relas: map[int][]reloc{}}
	for _, step := range []func() error{o.sections, o.symbols, o.tables, o.text, o.allSites, o.about} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	o.cut()
	return o.m, nil
}

type opener struct {
	f     *elf.File
	m     *Module
	index []int32 // of a section of the file in Sections, or what follows it
	relas map[int][]reloc
}

// sections chooses what the kernel keeps and what of it is code.
func (o *opener) sections() error {
	total := uint64(0)
	for i, s := range o.f.Sections {
		switch {
		case s.Flags&elf.SHF_ALLOC == 0 || s.Name == ".modinfo" || s.Name == "__versions":
			o.index[i] = inNone
			continue
		case s.Name == ".data..percpu" || s.Size == 0: // not shown: add_sect_attrs, kernel/module/sysfs.c
			o.index[i] = inUnseen - int32(len(o.m.unseen))
			o.m.unseen = append(o.m.unseen, s.Size == 0)
			continue
		}
		if s.Flags&elf.SHF_COMPRESSED != 0 {
			return fmt.Errorf("section %s is compressed", s.Name)
		}
		text := s.Flags&elf.SHF_EXECINSTR != 0 && !strings.HasPrefix(s.Name, ".init")
		if text {
			if total += s.Size; s.Type != elf.SHT_PROGBITS || s.Size > maxText || total > maxText {
				return fmt.Errorf("section %s: %s of %d bytes", s.Name, s.Type, s.Size)
			}
			data, err := s.Data()
			if err != nil {
				return fmt.Errorf("section %s: %w", s.Name, err)
			}
			o.m.parts = append(o.m.parts, part{section: len(o.m.Sections), stock: bytes.Clone(data)})
		}
		o.index[i] = int32(len(o.m.Sections))
		o.m.Sections = append(o.m.Sections, Section{s.Name, s.Size, max(s.Addralign, 1), text})
	}
	return nil
}

// symbols reads the symbol table.
func (o *opener) symbols() error {
	list, err := o.f.Symbols()
	if errors.Is(err, elf.ErrNoSymbols) {
		list, err = nil, nil
	}
	if err != nil || len(list) > maxSymbols {
		return fmt.Errorf("symbols: %d: %w", len(list), err)
	}
	exported := map[string]bool{}
	for _, s := range list {
		if name, ok := strings.CutPrefix(s.Name, "__ksymtab_"); ok {
			exported[name] = true
		}
	}
	o.m.symbols = make([]symbol, len(list)+1)
	o.m.symbols[0] = symbol{place: place{inKernel, 0}} // the null symbol
	for i, s := range list {
		y := symbol{place: place{inNone, s.Value}}
		switch {
		case s.Section == elf.SHN_UNDEF:
			y.place, y.name = place{inKernel, 0}, s.Name
			if s.Name == "" {
				y.section = inNone
			}
		case s.Section == elf.SHN_ABS:
			y.section = inKernel
		case int(s.Section) < len(o.index):
			y.section = o.index[s.Section]
		}
		o.m.symbols[i+1] = y
		if (y.section >= 0 || y.section <= inUnseen) && elf.ST_BIND(s.Info) != elf.STB_LOCAL && exported[s.Name] {
			o.m.exports[s.Name] = y.place
		}
	}
	return nil
}

const relaSize = 24 // of Elf64_Rela

// tables reads the relocations of the text and of the tables of sites.
func (o *opener) tables() error {
	for _, s := range o.f.Sections {
		if s.Type != elf.SHT_RELA || int(s.Info) >= len(o.f.Sections) {
			continue
		}
		to := o.f.Sections[s.Info]
		if !siteTables[to.Name] && (o.index[s.Info] < 0 || !o.m.Sections[o.index[s.Info]].Text) {
			continue
		}
		if s.Size%relaSize != 0 || s.Size/relaSize > maxEntries {
			return fmt.Errorf("%s: %d bytes are no list of relocations", s.Name, s.Size)
		}
		data, err := s.Data()
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		list := make([]reloc, 0, len(data)/relaSize)
		le := binary.LittleEndian
		for ; len(data) > 0; data = data[relaSize:] {
			r := reloc{symbol: le.Uint32(data[12:]), kind: elf.R_X86_64(le.Uint32(data[8:])), addend: int64(le.Uint64(data[16:]))}
			off := le.Uint64(data)
			if r.kind == elf.R_X86_64_NONE {
				continue
			}
			n := r.size()
			if n == 0 || uint64(r.symbol) >= uint64(len(o.m.symbols)) || off > to.Size || to.Size-off < uint64(n) {
				return fmt.Errorf("%s: relocation %s of symbol %d at +%#x", s.Name, r.kind, r.symbol, off)
			}
			r.off = uint32(off)
			list = append(list, r)
		}
		slices.SortFunc(list, func(a, b reloc) int { return cmp.Compare(a.off, b.off) })
		o.relas[int(s.Info)] = list
	}
	return nil
}

// size is how many bytes a relocation writes; 0 where the kernel refuses it
// (arch/x86/kernel/module.c).
func (r reloc) size() int {
	switch r.kind {
	case elf.R_X86_64_64, elf.R_X86_64_PC64:
		return 8
	case elf.R_X86_64_32, elf.R_X86_64_32S, elf.R_X86_64_PC32, elf.R_X86_64_PLT32:
		return 4
	}
	return 0
}

// relative tells whether a relocation counts from where it is.
func (r reloc) relative() bool {
	return r.kind == elf.R_X86_64_PC32 || r.kind == elf.R_X86_64_PLT32 || r.kind == elf.R_X86_64_PC64
}

// text gives each part its relocations.
func (o *opener) text() error {
	for i, x := range o.index {
		for n := range o.m.parts {
			if int32(o.m.parts[n].section) == x {
				o.m.parts[n].relocs = o.relas[i]
			}
		}
	}
	for _, p := range o.m.parts {
		for _, r := range p.relocs {
			if o.m.symbols[r.symbol].section == inNone {
				return fmt.Errorf("section %s: +%#x refers to what the module does not keep", o.m.Sections[p.section].Name, r.off)
			}
		}
	}
	return nil
}

// about reads which modules it needs.
func (o *opener) about() error {
	s := o.f.Section(".modinfo")
	if s == nil {
		return nil
	}
	if s.Size > 1<<20 {
		return fmt.Errorf(".modinfo of %d bytes", s.Size)
	}
	data, err := s.Data()
	if err != nil {
		return fmt.Errorf(".modinfo: %w", err)
	}
	for _, line := range strings.Split(string(data), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			for _, d := range strings.Split(list, ",") {
				o.m.Depends = append(o.m.Depends, modlist.Name(d))
			}
		}
	}
	return nil
}

// cut makes the pieces, and forgets what no relocation of text needs.
func (o *opener) cut() {
	m := o.m
	for i, p := range m.parts {
		for at := 0; at < len(p.stock); at += PieceSize {
			m.pieces = append(m.pieces, piece{i, uint32(at), uint32(min(at+PieceSize, len(p.stock)))})
		}
	}
	used := map[uint32]uint32{}
	var kept []symbol
	for i := range m.parts {
		for k := range m.parts[i].relocs {
			r := &m.parts[i].relocs[k]
			n, ok := used[r.symbol]
			if !ok {
				n = uint32(len(kept))
				s := m.symbols[r.symbol]
				s.name = strings.Clone(s.name)
				used[r.symbol], kept = n, append(kept, s)
			}
			r.symbol = n
		}
		m.parts[i].relocs = slices.Clone(m.parts[i].relocs)
	}
	m.symbols = slices.Clone(kept)
}

// Pieces is how many pieces the text has.
func (m *Module) Pieces() int { return len(m.pieces) }

// Piece says where a piece lies: the index of its section, its offset there and how
// many bytes must be read of it, margin included.
func (m *Module) Piece(i int) (section int, offset, size uint64) {
	p := m.pieces[i]
	part := m.parts[p.part]
	return part.section, uint64(p.from), min(uint64(p.to)+Margin, uint64(len(part.stock))) - uint64(p.from)
}

// Memory is about how many bytes the module takes here.
func (m *Module) Memory() int {
	n := 256*len(m.exports) + 64*len(m.symbols) + 64*len(m.Sections)
	for _, p := range m.parts {
		n += len(p.stock) + 24*len(p.relocs) + 40*len(p.sites)
	}
	return n
}
