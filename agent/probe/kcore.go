package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"portcullis/attestserver/protocol"
)

// parseKernelCode finds the kernel's text in /proc/iomem.
func parseKernelCode(iomem []byte) (start, end uint64, err error) {
	return parseKernel(iomem, "Kernel code", protocol.MaxKernelText)
}

// parseKernel finds a part of the kernel image of at most max bytes in
// /proc/iomem: physical addresses, both ends included. Without CAP_SYS_ADMIN the
// kernel shows zeros.
func parseKernel(iomem []byte, part string, max uint64) (start, end uint64, err error) {
	for l := range strings.Lines(string(iomem)) {
		span, name, ok := strings.Cut(strings.TrimSpace(l), " : ")
		if !ok || name != part {
			continue
		}
		from, to, _ := strings.Cut(span, "-")
		if start, err = strconv.ParseUint(from, 16, 64); err != nil {
			return 0, 0, fmt.Errorf("iomem: %w", err)
		}
		if end, err = strconv.ParseUint(to, 16, 64); err != nil {
			return 0, 0, fmt.Errorf("iomem: %w", err)
		}
		if end <= start || end-start >= max {
			return 0, 0, fmt.Errorf("iomem: %s at %#x-%#x", part, start, end)
		}
		return start, end, nil
	}
	return 0, 0, fmt.Errorf("iomem: no line for %s", part)
}

// Sizes and offsets of the 64-bit ELF head and its program headers (elf(5)).
const (
	elfHeadSize = 64
	elfPhdrSize = 56
	maxPhdrs    = 1024
	// kernelMap is where x86-64 maps the kernel image (Documentation/arch/x86/x86_64/mm.rst).
	kernelMap = 0xffffffff80000000
)

// segment is a range of addresses that /proc/kcore shows, in bytes.
type segment struct {
	offset                  uint64 // in the file
	virtual, physical, size uint64
}

// segments reads the program headers of /proc/kcore.
func segments(kcore io.ReaderAt) ([]segment, error) {
	var head [elfHeadSize]byte
	if _, err := kcore.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("kcore: %w", err)
	}
	le := binary.LittleEndian
	if string(head[:5]) != "\x7fELF\x02" || le.Uint16(head[54:]) != elfPhdrSize {
		return nil, errors.New("kcore: not a 64-bit ELF file")
	}
	n := int(le.Uint16(head[56:]))
	if n > maxPhdrs {
		return nil, fmt.Errorf("kcore: %d program headers", n)
	}
	table := make([]byte, n*elfPhdrSize)
	if _, err := kcore.ReadAt(table, int64(le.Uint64(head[32:]))); err != nil {
		return nil, fmt.Errorf("kcore: program headers: %w", err)
	}
	var out []segment
	for ; len(table) > 0; table = table[elfPhdrSize:] {
		if le.Uint32(table) == 1 { // PT_LOAD
			out = append(out, segment{le.Uint64(table[8:]), le.Uint64(table[16:]), le.Uint64(table[24:]), le.Uint64(table[32:])})
		}
	}
	return out, nil
}

// locate finds where /proc/kcore has the mapping of the kernel image that holds
// the physical range: the same memory shows a second time in the direct map,
// which is not what the CPU runs.
func locate(kcore io.ReaderAt, physical, size uint64) (*kernelText, error) {
	all, err := segments(kcore)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.virtual < kernelMap || physical < s.physical || physical-s.physical > s.size || s.size-(physical-s.physical) < size {
			continue
		}
		in := physical - s.physical
		return &kernelText{base: s.virtual + in, size: size, offset: int64(s.offset + in)}, nil
	}
	return nil, errors.New("kcore: the kernel image is not in it")
}

// at says where in /proc/kcore a range of virtual addresses is.
func at(all []segment, virtual, size uint64) (int64, bool) {
	for _, s := range all {
		if virtual >= s.virtual && virtual-s.virtual <= s.size && s.size-(virtual-s.virtual) >= size {
			return int64(s.offset + virtual - s.virtual), true
		}
	}
	return 0, false
}
