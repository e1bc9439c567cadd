package ktextmask

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxRodata bounds the read-only data, in bytes.
const maxRodata = 128 << 20

// rodataAlign is the most that the linker leaves free between text and
// read-only data, so that each has huge pages of its own.
const rodataAlign = 2 << 20

// StockRodata reads the kernel's read-only data out of a bzImage as it was
// built: from the virtual address base to the end of the segment that holds the
// text. base must be the first page behind the text, or the next huge page with
// nothing but padding before it.
func (m *Mask) StockRodata(bzImage io.ReaderAt, size int64, base uint64) ([]byte, error) {
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
	end := m.segmentEnd(head)
	textEnd := m.TextBase + m.TextSize
	if base < textEnd || base-textEnd >= rodataAlign || base%4096 != 0 || end <= base || end-base > maxRodata {
		return nil, fmt.Errorf("vmlinux: no read-only data from %#x to %#x behind text that ends at %#x", base, end, textEnd)
	}
	if _, err := io.CopyN(io.Discard, r, at-elfStart+int64(m.TextSize)); err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	gap, out := make([]byte, base-textEnd), make([]byte, end-base)
	for _, b := range [][]byte{gap, out} {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, fmt.Errorf("bzImage: decompress: %w", err)
		}
	}
	if len(bytes.Trim(gap, "\x00\xcc")) > 0 {
		return nil, errors.New("vmlinux: something lies between text and read-only data")
	}
	return out, nil
}

// segmentEnd is the address behind the last byte of the text's segment.
func (m *Mask) segmentEnd(head []byte) uint64 {
	le := binary.LittleEndian
	at, n := le.Uint64(head[32:]), uint64(le.Uint16(head[56:]))
	for ; n > 0 && at <= elfStart-56; n, at = n-1, at+56 {
		p := head[at:]
		if le.Uint32(p) == uint32(elf.PT_LOAD) && le.Uint64(p[16:]) == m.TextBase {
			return m.TextBase + min(le.Uint64(p[32:]), maxKernel)
		}
	}
	return 0
}
