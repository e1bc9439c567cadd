package ktextmask

import (
	"bytes"
	"fmt"
	"io"
)

// elfStart is how much of the kernel's start holds its program headers.
const elfStart = 4096

// stock is the kernel of a bzImage, as it was built.
type stock struct {
	payload *io.SectionReader
	head    []byte // elfStart bytes of the kernel
}

func openStock(bzImage io.ReaderAt, size int64) (*stock, error) {
	payload, _, err := findPayload(bzImage, size)
	if err != nil {
		return nil, err
	}
	s := &stock{payload: payload, head: make([]byte, elfStart)}
	r, err := s.from(0, elfStart)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := io.ReadFull(r, s.head); err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	return s, nil
}

// from reads n bytes of the kernel from the offset at on. It takes as much memory as at and n
// together: packed data refers to what came before it.
func (s *stock) from(at, n uint64) (io.ReadCloser, error) {
	r, err := decompressor(s.payload, at+n)
	if err != nil {
		return nil, fmt.Errorf("bzImage: %w", err)
	}
	if _, err := io.CopyN(io.Discard, r, int64(at)); err != nil {
		r.Close()
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	return r, nil
}

// Of a zstd frame (RFC 8878).
const (
	frameHead       = 6         // bytes: magic, descriptor, window descriptor
	singleSegment   = 1 << 5    // of the descriptor: there is no window descriptor
	maxBlock        = 128 << 10 // bytes of one block, unpacked
	smallestWindow  = 10        // as an exponent of two
	windowExponents = 1 << 5
)

// narrow makes the decoder of a zstd frame keep no more than the first n bytes need. The
// kernel's build declares a window of 128 MiB, whatever the kernel's size, and a decoder takes
// all of it at once: more than attestd may have. Nothing refers to what lies before the
// start, so that a window of all that is unpacked is as good.
func narrow(frame *io.SectionReader, n uint64) io.Reader {
	head := make([]byte, frameHead)
	if _, err := frame.ReadAt(head, 0); err != nil || head[4]&singleSegment != 0 {
		return frame
	}
	// The block with the last byte is unpacked as a whole.
	if d, ok := window(n + maxBlock); ok && d < head[5] {
		head[5] = d
	}
	return io.MultiReader(bytes.NewReader(head), io.NewSectionReader(frame, frameHead, frame.Size()-frameHead))
}

// window is the descriptor of the smallest window of at least n bytes: an exponent and eighths.
// The order of descriptors is that of windows.
func window(n uint64) (descriptor byte, ok bool) {
	for e := range windowExponents {
		base := uint64(1) << (smallestWindow + e)
		for eighths := range uint64(8) {
			if base+base/8*eighths >= n {
				return byte(e<<3) | byte(eighths), true
			}
		}
	}
	return 0, false
}
