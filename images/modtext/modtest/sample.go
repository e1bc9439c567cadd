// Package modtest makes a kernel module with one site of each class that the kernel
// patches, and its text as the kernel has it in memory. Tests are the only callers.
package modtest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
)

// Where the kernel's text is, at least 4 KiB; the module; what it needs of another one.
const (
	KernelBase = 0xffffffff81000000
	TextAt     = 0xffffffffc0000000
	DataAt     = 0xffffffffc0010000
	HelperAt   = 0xffffffffc0020040 // of the module that it needs
	PerCPUAt   = 0x2d000
	TextSize   = 0x1800
)

// Exports is the list of the kernel's symbols (modtext.ParseExports).
var Exports = []byte("# portcullis kernel exports v1: address name\n" +
	"ffffffff81000100 __SCT__call\nffffffff81000200 __fentry__\nffffffff81000300 __x86_indirect_thunk_r11\n" +
	"ffffffff81000400 __x86_return_thunk\nffffffff81000500 kfree\n")

// Sections and symbols of the sample, by their numbers in the file.
const (
	symText = iota + 1
	symData
	symPerCPU
	symFentry
	symReturn
	symThunk
	symKfree
	symCall
	symHelper
	symOwn
	symKsym
)

// Module is the module's file. It needs a symbol helper of the module that it depends
// on, if it does.
func Module(depends string) []byte { return build(depends).bytes() }

// Tables is the file of a module that has data and no text.
func Tables() []byte {
	k := &koFile{sections: []koSection{{name: ".data", flags: elf.SHF_ALLOC | elf.SHF_WRITE, data: make([]byte, 64)}, {name: ".modinfo", flags: elf.SHF_ALLOC, data: []byte("depends=\x00")}}}
	return k.bytes()
}

func build(depends string) *koFile {
	const ax, a, wa = elf.SHF_ALLOC | elf.SHF_EXECINSTR, elf.SHF_ALLOC, elf.SHF_ALLOC | elf.SHF_WRITE
	k := &koFile{sections: []koSection{{name: ".text", flags: ax}, {name: ".data", flags: wa, data: make([]byte, 64)}, {name: ".data..percpu", flags: wa, data: make([]byte, 64)}},
		symbols: []koSymbol{{"text", 1, 0, false}, {"data", 2, 0, false}, {"percpu", 3, 0, false}, {name: "__fentry__"}, {name: "__x86_return_thunk"},
			{name: "__x86_indirect_thunk_r11"}, {name: "kfree"}, {name: "__SCT__call"}, {name: "helper"}, {"own", 1, 0x10, true}, {"__ksymtab_own", 2, 0, false}}}
	text := &k.sections[0]
	text.data = bytes.Repeat([]byte{0x55}, TextSize)
	put := func(at int, code string) { copy(text.data[at:], code) }
	branch := func(at int, op string, symbol int) {
		put(at, op+"\x00\x00\x00\x00")
		text.relocs = append(text.relocs, koReloc{uint64(at + len(op)), symbol, elf.R_X86_64_PLT32, -4})
	}
	put(0, strings.Repeat("\x90", 16))
	put(0x10, "\xf3\x0f\x1e\xfa")
	branch(0x14, "\xe8", symFentry)
	put(0x20, "\x0f\x1f\x44\x00\x00")
	put(0x28, "\x66\x90")
	branch(0x30, "\xe8", symCall)
	put(0x38, "\xf0")
	branch(0x40, "\xe9", symReturn)
	branch(0x48, "\x2e\xe8", symThunk)
	branch(0x50, "\xe8", symKfree)
	text.relocs = append(text.relocs, koReloc{0x60, symData, elf.R_X86_64_32S, 8},
		koReloc{0x70, symPerCPU, elf.R_X86_64_PC32, 12}, koReloc{0x74, symPerCPU, elf.R_X86_64_32S, 16}, koReloc{0x78, symData, elf.R_X86_64_PC64, 0}, koReloc{0x80, symData, elf.R_X86_64_32, 0})
	if depends != "" {
		text.relocs = append(text.relocs, koReloc{0x68, symHelper, elf.R_X86_64_64, 0})
	}
	branch(0xffe, "\xe9", symReturn)
	table := func(name string, size int, places ...int64) {
		s := koSection{name: name, flags: a}
		for _, p := range places {
			s.entry(size, koReloc{0, symText, elf.R_X86_64_PC32, p})
		}
		k.sections = append(k.sections, s)
	}
	table("__patchable_function_entries", 8, 0)
	table("__mcount_loc", 8, 0x14)
	table(".static_call_sites", 8, 0x30)
	table(".smp_locks", 4, 0x38)
	table(".return_sites", 4, 0x40, 0xffe)
	table(".retpoline_sites", 4, 0x48)
	table(".call_sites", 4, 0x50)
	table(".ibt_endbr_seal", 4, 0x10)
	table(".altinstructions", 14, 0x58)
	k.sections[len(k.sections)-1].data[12] = 3
	jumps := koSection{name: "__jump_table", flags: wa}
	jumps.entry(16, koReloc{0, symText, elf.R_X86_64_PC32, 0x20}, koReloc{4, symText, elf.R_X86_64_PC32, 0x100})
	jumps.entry(16, koReloc{0, symText, elf.R_X86_64_PC32, 0x28}, koReloc{4, symText, elf.R_X86_64_PC32, 0x40})
	k.sections = append(k.sections, jumps, koSection{name: ".modinfo", flags: a, data: []byte("depends=" + depends + "\x00")})
	return k
}

// Text is the text of Module(depends) in memory: at TextAt, its data at DataAt, its
// per-CPU variables at PerCPUAt.
func Text(depends string) []byte {
	text := build(depends).sections[0].data
	copy(text[0x14:], "\x0f\x1f\x44\x00\x00")
	le := binary.LittleEndian
	for _, at := range []int{0x30, 0x40, 0x48, 0x50, 0xffe} {
		to := map[int]uint64{0x30: 0x100, 0x40: 0x400, 0x48: 0x300, 0x50: 0x500, 0xffe: 0x400}[at]
		if at == 0x48 {
			at++
		}
		Branch(text, at, KernelBase+to)
	}
	le.PutUint32(text[0x60:], (DataAt+8)&(1<<32-1))
	if depends != "" {
		le.PutUint64(text[0x68:], HelperAt)
	}
	le.PutUint32(text[0x70:], uint32((1<<64+PerCPUAt+12-TextAt-0x70)&(1<<32-1)))
	le.PutUint32(text[0x74:], PerCPUAt+16)
	le.PutUint64(text[0x78:], uint64(DataAt-(TextAt+0x78)))
	le.PutUint32(text[0x80:], DataAt&(1<<32-1))
	return text
}

// Branch writes the offset of a branch of one byte and an offset at at.
func Branch(text []byte, at int, to uint64) {
	binary.LittleEndian.PutUint32(text[at+1:], uint32(to-(TextAt+uint64(at)+5)))
}
