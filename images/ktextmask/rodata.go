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

// OpenRodata reads the kernel's read-only data out of a bzImage as it was
// built: from the virtual address base to the end of the segment that holds the
// text, size bytes. base must be the first page behind the text, or the next huge page
// with nothing but padding before it. The reader holds as much as all before the end in
// memory, and must be closed.
func (m *Mask) OpenRodata(bzImage io.ReaderAt, fileSize int64, base uint64) (r io.ReadCloser, size uint64, err error) {
	s, err := openStock(bzImage, fileSize)
	if err != nil {
		return nil, 0, err
	}
	at, err := m.textOffset(s.head)
	if err != nil {
		return nil, 0, err
	}
	end := m.segmentEnd(s.head)
	textEnd := m.TextBase + m.TextSize
	if base < textEnd || base-textEnd >= rodataAlign || base%4096 != 0 || end <= base || end-base > maxRodata {
		return nil, 0, fmt.Errorf("vmlinux: no read-only data from %#x to %#x behind text that ends at %#x", base, end, textEnd)
	}
	at += m.TextSize
	if r, err = s.from(at, end-textEnd); err != nil {
		return nil, 0, err
	}
	if err := padding(r, base-textEnd); err != nil {
		r.Close()
		return nil, 0, err
	}
	return r, end - base, nil
}

// padding checks that r holds n bytes that the linker fills gaps with.
func padding(r io.Reader, n uint64) error {
	buf := make([]byte, 4096)
	for n > 0 {
		b := buf[:min(n, uint64(len(buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("bzImage: decompress: %w", err)
		}
		if len(bytes.Trim(b, "\x00\xcc")) > 0 {
			return errors.New("vmlinux: something lies between text and read-only data")
		}
		n -= uint64(len(b))
	}
	return nil
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
