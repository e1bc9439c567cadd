// Package textpatch knows the forms in which Linux patches its own x86-64 text and that
// of its modules: near branches, jump labels, static calls (arch/x86/kernel of Linux 6.12).
package textpatch

import (
	"bytes"
	"encoding/binary"
)

// What stands where nothing is to be done (arch/x86/include/asm/nops.h,
// arch/x86/kernel/static_call.c).
var (
	Nop2    = []byte{0x66, 0x90}
	Nop5    = []byte{0x0f, 0x1f, 0x44, 0x00, 0x00}
	Zero5   = []byte{0x2e, 0x2e, 0x2e, 0x31, 0xc0} // "return 0" of a static call, in place
	Return5 = []byte{0xc3, 0xcc, 0xcc, 0xcc, 0xcc}
)

// TrampolineEnd follows the jump of every static call trampoline, so that the kernel can
// recognise them (tramp_ud in static_call.c).
var TrampolineEnd = []byte{0x0f, 0xb9, 0xcc}

// Branch decodes the near branches that the kernel patches and returns where they go:
// call, jmp, jcc, each with or without a CS prefix, at the beginning of b, which is at at.
func Branch(at uint64, b []byte) (target uint64, length int, ok bool) {
	code := b
	if len(b) > 1 && b[0] == 0x2e {
		code, length = b[1:], 1
	}
	switch {
	case len(code) >= 5 && (code[0] == 0xe8 || code[0] == 0xe9):
		length += 5
	case len(code) >= 6 && code[0] == 0x0f && code[1]&0xf0 == 0x80:
		length += 6
	case len(code) >= 2 && code[0] == 0xeb:
		length += 2
		return at + uint64(length) + uint64(int64(int8(code[1]))), length, true
	default:
		return 0, 0, false
	}
	return at + uint64(length) + uint64(int64(int32(binary.LittleEndian.Uint32(b[length-4:])))), length, true
}

// JumpLabel tells whether code, all of the site of a jump label, is a NOP or the JMP to
// the label's target and nowhere else.
func JumpLabel(at uint64, code []byte, target uint64) bool {
	if bytes.Equal(code, Nop2) || bytes.Equal(code, Nop5) {
		return true
	}
	to, n, ok := Branch(at, code)
	return ok && n == len(code) && (code[0] == 0xeb || code[0] == 0xe9) && to == target
}

// StaticCall tells where the call or jump goes that is all of the site of a static call.
// nothing is true of one that does nothing.
func StaticCall(at uint64, code []byte) (to uint64, nothing, ok bool) {
	if bytes.Equal(code, Nop5) || bytes.Equal(code, Zero5) || bytes.Equal(code, Return5) {
		return 0, true, true
	}
	to, n, ok := Branch(at, code)
	return to, false, ok && n == len(code) && n >= 5
}
