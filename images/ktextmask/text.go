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

// Text is the kernel text of a bzImage as it was built. It holds as much as the text and
// what lies before it in memory, and must be closed.
type Text struct {
	r         io.ReadCloser
	m         *Mask
	run       []Range
	i         int
	buf, zero []byte
}

// OpenText finds the text in a bzImage. It unpacks no more than it needs: the text is
// at the start of the kernel.
func (m *Mask) OpenText(bzImage io.ReaderAt, size int64) (*Text, error) {
	s, err := openStock(bzImage, size)
	if err != nil {
		return nil, err
	}
	at, err := m.textOffset(s.head)
	if err != nil {
		return nil, err
	}
	r, err := s.from(at, m.TextSize)
	if err != nil {
		return nil, err
	}
	return &Text{r: r, m: m, run: m.RunTime(), buf: make([]byte, Granule), zero: make([]byte, Granule)}, nil
}

// Next returns the next granule, which is the caller's until Next is called again, and io.EOF
// behind the last. It must be the signed kernel's where the kernel patches nothing: its digest
// is that of the mask.
func (t *Text) Next() (piece []byte, err error) {
	off := uint64(t.i) * Granule
	if off >= t.m.TextSize {
		return nil, io.EOF
	}
	b := t.buf[:min(Granule, t.m.TextSize-off)]
	if _, err := io.ReadFull(t.r, b); err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	z := t.zero[:copy(t.zero, b)]
	Zero(z, off, t.run)
	Zero(z, off, t.m.Boot)
	if sha256.Sum256(z) != t.m.Stock[t.i] {
		return nil, fmt.Errorf("bzImage: text at +%#x is not that of the mask", off)
	}
	t.i++
	return b, nil
}

// Close gives the memory back.
func (t *Text) Close() error { return t.r.Close() }

// textOffset finds where the text lies in the kernel's ELF file.
func (m *Mask) textOffset(head []byte) (uint64, error) {
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
			return offset, nil
		}
	}
	return 0, fmt.Errorf("vmlinux: no segment begins at %#x", m.TextBase)
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

// Scatter is the way back of Gather: it fills what ranges cover of buf from the start of
// from, and returns what is left of that.
func Scatter(buf []byte, off uint64, from []byte, ranges []Range) (rest []byte, err error) {
	each(buf, off, ranges, func(b []byte) {
		if len(from) < len(b) {
			err, from = errors.New("fewer bytes than the ranges cover"), nil
			return
		}
		from = from[copy(b, from):]
	})
	return from, err
}
