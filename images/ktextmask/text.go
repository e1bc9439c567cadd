package ktextmask

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// elfStart is how much of the kernel's start holds its program headers.
const elfStart = 4096

// StockText reads the kernel text out of a bzImage as it was built, and checks
// it against the mask's digests. It unpacks no more than it needs: the text is
// at the start of the kernel. It holds the text and as much again in memory.
func (m *Mask) StockText(bzImage io.ReaderAt, size int64) ([]byte, error) {
	payload, _, err := findPayload(bzImage, size)
	if err != nil {
		return nil, err
	}
	r, err := decompressor(payload)
	if err != nil {
		return nil, fmt.Errorf("bzImage: %w", err)
	}
	defer r.Close()
	head := make([]byte, elfStart)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	at, err := m.textOffset(head)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, at-elfStart); err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	text := make([]byte, m.TextSize)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	if bad := m.NotStock(text); len(bad) > 0 {
		return nil, fmt.Errorf("bzImage: text at +%#x is not that of the mask", bad[0]*Granule)
	}
	return text, nil
}

// textOffset finds where the text lies in the kernel's ELF file.
func (m *Mask) textOffset(head []byte) (int64, error) {
	le := binary.LittleEndian
	if !bytes.HasPrefix(head, []byte("\x7fELF\x02\x01")) {
		return 0, errors.New("vmlinux: not a 64-bit ELF file")
	}
	at, n := le.Uint64(head[32:]), uint64(le.Uint16(head[56:]))
	for ; n > 0; n, at = n-1, at+56 {
		if at > elfStart-56 {
			break
		}
		p := head[at:]
		if le.Uint32(p) != uint32(elf.PT_LOAD) {
			continue
		}
		offset, address := le.Uint64(p[8:]), le.Uint64(p[16:])
		if address == m.TextBase && offset >= elfStart && offset < maxKernel {
			return int64(offset), nil
		}
	}
	return 0, fmt.Errorf("vmlinux: no segment begins at %#x", m.TextBase)
}

// NotStock lists the granules of text that differ from the signed kernel where
// the kernel patches nothing. text must have the size of the mask's.
func (m *Mask) NotStock(text []byte) (bad []int) {
	run := m.RunTime()
	buf := make([]byte, Granule)
	for i, want := range m.Stock {
		n := copy(buf, text[i*Granule:])
		Zero(buf[:n], uint64(i)*Granule, run)
		Zero(buf[:n], uint64(i)*Granule, m.Boot)
		if sha256.Sum256(buf[:n]) != want {
			bad = append(bad, i)
		}
	}
	return bad
}

// subtract takes b away from a; both are sorted and without overlap.
func subtract(a, b []Range) (out []Range) {
	for _, r := range a {
		from, end := r.Off, r.Off+r.Len
		i, _ := slices.BinarySearchFunc(b, from, func(x Range, at uint32) int {
			if x.Off+x.Len <= at {
				return -1
			}
			return 1
		})
		for ; i < len(b) && b[i].Off < end; i++ {
			if b[i].Off > from {
				out = append(out, Range{from, b[i].Off - from})
			}
			from = max(from, b[i].Off+b[i].Len)
		}
		if from < end {
			out = append(out, Range{from, end - from})
		}
	}
	return out
}

// Gather appends to out what ranges cover of buf, which begins at byte off of
// the text. ranges must be sorted and must not overlap.
func Gather(out, buf []byte, off uint64, ranges []Range) []byte {
	each(buf, off, ranges, func(b []byte) { out = append(out, b...) })
	return out
}

// Scatter is the way back of Gather over the whole text: it returns what is
// left of from, which must hold as much as the ranges cover.
func Scatter(text, from []byte, ranges []Range) (rest []byte, err error) {
	for _, r := range ranges {
		if len(from) < int(r.Len) {
			return nil, errors.New("fewer bytes than the ranges cover")
		}
		copy(text[r.Off:r.Off+r.Len], from)
		from = from[r.Len:]
	}
	return from, nil
}
