package blockmap

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Pack compresses an image of size bytes to w and returns its map. Each MaxRange
// bytes are a zstd frame of their own, made by two workers: the bytes depend on
// the image only, and zstd(1) reads them as one file. progress may be nil.
func Pack(w io.Writer, img io.ReaderAt, size int64, title string, progress func(done, total int64)) (*Map, error) {
	m := &Map{Schema: Schema, Title: title, Size: size}
	if size < Block || size > MaxSize {
		return nil, refuse(ReasonMalformed, "an image of %d bytes", size)
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	const workers = 2
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithWindowSize(MaxRange), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("blockmap: %w", err)
	}
	defer enc.Close()
	n := (size + MaxRange - 1) / MaxRange
	pending := make(chan chan frame, workers-1)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		defer close(pending)
		for i := range n {
			f := make(chan frame, 1)
			select {
			case pending <- f:
			case <-stop:
				return
			}
			go func() { f <- pack(enc, img, i*MaxRange, min(MaxRange, size-i*MaxRange)) }()
		}
	}()
	done := int64(0)
	for f := range pending {
		r := <-f
		if r.err != nil {
			return nil, r.err
		}
		k, err := out.Write(r.packed)
		if err != nil {
			return nil, fmt.Errorf("blockmap: %w", err)
		}
		m.Compressed.Size += int64(k)
		m.Ranges = append(m.Ranges, r.ranges...)
		done += r.length
		if progress != nil {
			progress(done, size)
		}
	}
	m.Compressed.SHA256 = Digest(sum.Sum(nil))
	return m, m.check()
}

type frame struct {
	packed []byte
	ranges []Range
	length int64
	err    error
}

// pack reads, maps and compresses one piece of the image.
func pack(enc *zstd.Encoder, img io.ReaderAt, off, length int64) frame {
	b := make([]byte, length)
	if n, err := img.ReadAt(b, off); int64(n) != length {
		return frame{err: fmt.Errorf("blockmap: image at %d: %d of %d bytes, %w", off, n, length, err)}
	}
	return frame{packed: enc.EncodeAll(b, nil), ranges: ranges(b, off), length: length}
}

// ranges returns what of b, which stands at off of the image, is not zero.
func ranges(b []byte, off int64) []Range {
	var out []Range
	start := -1
	for i := 0; i <= len(b); i += Block {
		zero := i >= len(b) || Zero(b[i:min(i+Block, len(b))])
		switch {
		case !zero && start < 0:
			start = i
		case zero && start >= 0:
			out = append(out, piece(b, off, start, i))
			start = -1
		}
	}
	if start >= 0 { // the image ends within a block
		out = append(out, piece(b, off, start, len(b)))
	}
	return out
}

func piece(b []byte, off int64, start, end int) Range {
	part := b[start:end]
	return Range{Start: off + int64(start), Length: int64(len(part)), SHA256: sha256.Sum256(part)}
}

// Zero tells whether b holds nothing but zeros.
func Zero(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	// Comparing b with itself, one byte further on, runs at the speed of memory.
	return b[0] == 0 && string(b[1:]) == string(b[:len(b)-1])
}
