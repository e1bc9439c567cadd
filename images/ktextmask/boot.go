package ktextmask

import (
	"encoding/binary"
	"fmt"

	"portcullis/images/textpatch"
)

// altEntry is the size of struct alt_instr since Linux 6.1: s32 instruction,
// s32 replacement, u32 feature and flags, u8 length, u8 replacement length.
const altEntry = 14

func (k *kernel) alternatives() ([]Range, error) {
	s := k.sections[".altinstructions"]
	if len(s.data) == 0 || len(s.data)%altEntry != 0 {
		return nil, fmt.Errorf(".altinstructions: %d bytes are no list of %d-byte entries", len(s.data), altEntry)
	}
	var out []Range
	for at := 0; at < len(s.data); at += altEntry {
		a := s.relative(at)
		if k.code(a, 1) == nil {
			return nil, fmt.Errorf(".altinstructions: entry %d points at no code", at/altEntry)
		}
		out = k.add(out, a, uint32(s.data[at+12]))
	}
	return out, nil
}

// sites reads a section of 32-bit self-relative offsets of code.
func (k *kernel) sites(name string, size func(code []byte) uint32) ([]Range, error) {
	s := k.sections[name]
	if len(s.data)%4 != 0 {
		return nil, fmt.Errorf("%s: %d bytes are no list of 32-bit offsets", name, len(s.data))
	}
	var out []Range
	for at := 0; at < len(s.data); at += 4 {
		a := s.relative(at)
		b := k.code(a, 8)
		if b == nil {
			continue // the section also names code that is freed after boot
		}
		out = k.add(out, a, size(b))
	}
	return out, nil
}

// callPadding is what call depth tracking writes: the bytes before each
// function that a call site goes to (CONFIG_FUNCTION_PADDING_BYTES, 16).
func (k *kernel) callPadding() []Range {
	s := k.sections[".call_sites"]
	seen := map[uint64]bool{}
	var out []Range
	for at := 0; at+4 <= len(s.data); at += 4 {
		a := s.relative(at)
		b := k.code(a, 8)
		if b == nil {
			continue
		}
		if to, _, ok := textpatch.Branch(a, b); ok && !seen[to] {
			seen[to] = true
			out = k.add(out, to-16, 16)
		}
	}
	return out
}

func (k *kernel) add(out []Range, a uint64, n uint32) []Range {
	if !k.text.contains(a) || n == 0 {
		return out
	}
	off := uint32(a - k.text.addr)
	return append(out, Range{off, min(n, uint32(len(k.text.data))-off)})
}

func fixed(n uint32) func([]byte) uint32 { return func([]byte) uint32 { return n } }

// branchSize is the length of the branch at a site; what follows a JMP may be
// overwritten with one more INT3 against straight-line speculation.
func branchSize(b []byte) uint32 {
	if _, n, ok := textpatch.Branch(0, b); ok {
		if b[0] == 0xe9 || b[0] == 0x2e && b[1] == 0xe9 {
			n++
		}
		return uint32(n)
	}
	return binary.MaxVarintLen32 // another encoding: 5 bytes
}
