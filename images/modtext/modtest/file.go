package modtest

import (
	"debug/elf"
	"encoding/binary"
)

// koFile is a module file in the making.
type koFile struct {
	sections []koSection
	symbols  []koSymbol
}

type koSection struct {
	name   string
	flags  elf.SectionFlag
	data   []byte
	relocs []koReloc
}

type koReloc struct {
	off    uint64
	symbol int // index of symbols, from 1
	kind   elf.R_X86_64
	addend int64
}

type koSymbol struct {
	name    string
	section int // index of sections from 1; 0: another one's
	value   uint64
	global  bool
}

// entry adds an entry to a table: zeros, and what is written into them.
func (s *koSection) entry(size int, fields ...koReloc) {
	at := uint64(len(s.data))
	s.data = append(s.data, make([]byte, size)...)
	for _, f := range fields {
		f.off += at
		s.relocs = append(s.relocs, f)
	}
}

// bytes writes the file.
func (k *koFile) bytes() []byte {
	le := binary.LittleEndian
	var names, strs, symtab []byte
	names, strs = append(names, 0), append(strs, 0)
	name := func(table *[]byte, s string) uint32 {
		at := uint32(len(*table))
		*table = append(append(*table, s...), 0)
		return at
	}
	symtab = make([]byte, 24)
	locals := 1
	for _, y := range k.symbols {
		b := make([]byte, 24)
		le.PutUint32(b, name(&strs, y.name))
		if y.global || y.section == 0 {
			b[4] = byte(elf.STB_GLOBAL) << 4
		} else {
			locals++
		}
		le.PutUint16(b[6:], uint16(y.section))
		le.PutUint64(b[8:], y.value)
		symtab = append(symtab, b...)
	}
	out := make([]byte, 64)
	head := make([]byte, 64)
	n := 1
	add := func(label string, kind elf.SectionType, flags elf.SectionFlag, data []byte, link, info uint32, entry uint64) {
		h := make([]byte, 64)
		le.PutUint32(h, name(&names, label))
		le.PutUint32(h[4:], uint32(kind))
		le.PutUint64(h[8:], uint64(flags))
		le.PutUint64(h[24:], uint64(len(out)))
		le.PutUint64(h[32:], uint64(len(data)))
		le.PutUint32(h[40:], link)
		le.PutUint32(h[44:], info)
		le.PutUint64(h[48:], 16)
		le.PutUint64(h[56:], entry)
		out, head = append(out, data...), append(head, h...)
		n++
	}
	for _, s := range k.sections {
		add(s.name, elf.SHT_PROGBITS, s.flags, s.data, 0, 0, 0)
	}
	symbols := uint32(n)
	for _, s := range k.sections {
		if len(s.relocs) > 0 {
			symbols++
		}
	}
	for i, s := range k.sections {
		if len(s.relocs) == 0 {
			continue
		}
		var b []byte
		for _, r := range s.relocs {
			b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, r.off), uint64(r.symbol)<<32|uint64(r.kind)), uint64(r.addend))
		}
		add(".rela"+s.name, elf.SHT_RELA, 0, b, symbols, uint32(i+1), 24)
	}
	add(".symtab", elf.SHT_SYMTAB, 0, symtab, symbols+1, uint32(locals), 24)
	add(".strtab", elf.SHT_STRTAB, 0, strs, 0, 0, 0)
	label := uint32(len(names))
	names = append(names, ".shstrtab\x00"...)
	h := make([]byte, 64)
	le.PutUint32(h, label)
	le.PutUint32(h[4:], uint32(elf.SHT_STRTAB))
	le.PutUint64(h[24:], uint64(len(out)))
	le.PutUint64(h[32:], uint64(len(names)))
	out, head = append(out, names...), append(head, h...)
	n++
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], uint16(elf.ET_REL))
	le.PutUint16(out[18:], uint16(elf.EM_X86_64))
	le.PutUint32(out[20:], 1)
	le.PutUint64(out[40:], uint64(len(out)))
	le.PutUint16(out[52:], 64)
	le.PutUint16(out[58:], 64)
	le.PutUint16(out[60:], uint16(n))
	le.PutUint16(out[62:], uint16(n-1))
	return append(out, head...)
}
