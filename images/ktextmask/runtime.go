package ktextmask

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"portcullis/images/textpatch"
)

// Fewest entries that are believed to be the table and not chance: a kernel of
// Debian has about 9,000 jump labels and 7,800 static call sites.
const (
	minJumpLabels = 500
	minStaticCall = 100
)

// jumpLabels finds __jump_table. The section is merged into .rodata by the
// linker script and stripped of its symbols, so that it is recognised by what
// its 16-byte entries {s32 code, s32 target, s64 key} point at: before the
// kernel runs, code holds exactly a NOP of 2 or 5 bytes or a JMP to target.
// The longest run is the table; it returns the offset in .rodata of its end,
// where .static_call_sites begins (RO_AFTER_INIT_DATA in vmlinux.lds.h).
func (k *kernel) jumpLabels() (labels []site, end int, err error) {
	ro := k.sections[".rodata"]
	var best, run []site
	bestN, n := 0, 0
	flush := func(at int) {
		if n > bestN {
			best, bestN, end = run, n, at
		}
		run, n = nil, 0
	}
	for at := 0; at+16 <= len(ro.data); {
		code, target := ro.relative(at), ro.relative(at+4)
		length := k.jumpSite(code, target)
		if length == 0 {
			flush(at)
			at += 8
			continue
		}
		n++
		if k.text.contains(code) && k.text.contains(target) {
			run = append(run, site{Range: Range{uint32(code - k.text.addr), uint32(length)}, target: uint32(target - k.text.addr)})
		}
		at += 16
	}
	flush(len(ro.data) &^ 7)
	if bestN < minJumpLabels {
		return nil, 0, fmt.Errorf("jump label table not found: longest run has %d entries", bestN)
	}
	return best, end, nil
}

func (k *kernel) jumpSite(code, target uint64) int {
	if k.code(target, 1) == nil {
		return 0
	}
	b := k.code(code, 8)
	switch {
	case b == nil:
		return 0
	case bytes.HasPrefix(b, textpatch.Nop5):
		return 5
	case bytes.HasPrefix(b, textpatch.Nop2):
		return 2
	case b[0] != 0xe9 && b[0] != 0xeb:
		return 0
	}
	if to, n, ok := textpatch.Branch(code, b); ok && to == target {
		return n
	}
	return 0
}

// trampolines finds the static call trampolines: 8-byte aligned, jmp rel32 (or
// ret and padding) followed by UD1.
func (k *kernel) trampolines() []Range {
	var out []Range
	for at := 0; at+8 <= len(k.text.data); at += 4 {
		b := k.text.data[at : at+8]
		if bytes.Equal(b[5:], textpatch.TrampolineEnd) && (b[0] == 0xe9 || b[0] == 0xc3) {
			out = append(out, Range{uint32(at), 5})
		}
	}
	return out
}

// staticCalls reads .static_call_sites, 8-byte entries {s32 site, s32 key},
// from offset at of .rodata to the first entry that is no branch. Nearly all
// of them must go to a trampoline.
func (k *kernel) staticCalls(at int, tramps []Range) ([]Range, error) {
	known := make(map[uint64]bool, len(tramps))
	for _, t := range tramps {
		known[k.text.addr+uint64(t.Off)] = true
	}
	ro := k.sections[".rodata"]
	var out []Range
	n, direct := 0, 0
	for ; at+8 <= len(ro.data); at += 8 {
		site := ro.relative(at)
		b := k.code(site, 8)
		if b == nil {
			break
		}
		to, length, ok := textpatch.Branch(site, b)
		if !ok || length < 5 {
			break
		}
		n++
		if !known[to] {
			direct++
		}
		if k.text.contains(site) {
			out = append(out, Range{uint32(site - k.text.addr), uint32(length)})
		}
	}
	if n < minStaticCall || direct*50 > n {
		return nil, fmt.Errorf("static call table not found after the jump labels: %d entries, %d not to a trampoline", n, direct)
	}
	return out, nil
}

// findStaticCalls finds .static_call_sites where no jump table is before it: the
// longest run of its entries that go to trampolines, with those that go straight on.
// It returns the offset in .rodata.
func (k *kernel) findStaticCalls(tramps []Range) (int, error) {
	known := make(map[uint64]bool, len(tramps))
	for _, t := range tramps {
		known[k.text.addr+uint64(t.Off)] = true
	}
	ro := k.sections[".rodata"]
	entry := func(at int) (to uint64, ok bool) {
		site := ro.relative(at)
		b := k.code(site, 8)
		if b == nil {
			return 0, false
		}
		to, n, ok := textpatch.Branch(site, b)
		return to, ok && n >= 5
	}
	best, bestN := 0, 0
	for at := 0; at+8 <= len(ro.data); at += 8 {
		if to, ok := entry(at); !ok || !known[to] {
			continue
		}
		from := at
		for from >= 8 {
			if _, ok := entry(from - 8); !ok {
				break
			}
			from -= 8
		}
		for at+8 <= len(ro.data) {
			if _, ok := entry(at); !ok {
				break
			}
			at += 8
		}
		if n := (at - from) / 8; n > bestN {
			best, bestN = from, n
		}
	}
	if bestN < minStaticCall {
		return 0, fmt.Errorf("static call table not found: longest run has %d entries", bestN)
	}
	return best, nil
}

// runtimeConsts are the immediates of runtime-const.h: one section a constant,
// runtime_ptr_NAME (8 bytes each) and runtime_shift_NAME (1 byte). The dentry
// table's address depends on how memory was handed out at boot; USER_PTR_MAX
// follows from the CPU alone and stays in the reference.
func (k *kernel) runtimeConsts() (run, cpu []Range, err error) {
	for name, s := range k.sections {
		var size uint32
		switch {
		case bytes.HasPrefix([]byte(name), []byte("runtime_ptr_")):
			size = 8
		case bytes.HasPrefix([]byte(name), []byte("runtime_shift_")):
			size = 1
		default:
			continue
		}
		if len(s.data)%4 != 0 {
			return nil, nil, fmt.Errorf("section %s: %d bytes are no list of 32-bit offsets", name, len(s.data))
		}
		for at := 0; at < len(s.data); at += 4 {
			a := s.relative(at)
			if !k.text.contains(a) {
				continue
			}
			r := Range{uint32(a - k.text.addr), size}
			if name == "runtime_ptr_USER_PTR_MAX" {
				cpu = append(cpu, r)
			} else {
				run = append(run, r)
			}
		}
	}
	return run, cpu, nil
}

// ftraceEntries finds __mcount_loc in .init.data: a run of absolute addresses
// of code that all call one and the same function, __fentry__.
func (k *kernel) ftraceEntries() ([]Range, error) {
	init := k.sections[".init.data"]
	var best, run []Range
	var fentry uint64
	for at := 0; at+8 <= len(init.data); at += 8 {
		a := binary.LittleEndian.Uint64(init.data[at:])
		to := uint64(0)
		if b := k.code(a, 8); b != nil && b[0] == 0xe8 {
			to, _, _ = textpatch.Branch(a, b)
		}
		if to == 0 || (len(run) > 0 && to != fentry) {
			if len(run) > len(best) {
				best = run
			}
			run = nil
		}
		if to != 0 {
			fentry = to
			if k.text.contains(a) {
				run = append(run, Range{uint32(a - k.text.addr), 5})
			}
		}
	}
	if len(run) > len(best) {
		best = run
	}
	if len(best) < minJumpLabels {
		return nil, errors.New("ftrace: no table of function entries")
	}
	return best, nil
}
