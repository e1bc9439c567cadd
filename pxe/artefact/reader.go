package artefact

import (
	"fmt"
	"io"
	"sync"

	"portcullis/images/manifest"
)

// buffers are chunk-sized; a transfer holds one while it lasts.
var buffers = sync.Pool{New: func() any { b := make([]byte, manifest.ChunkSize); return &b }}

// Reader reads a range of an artefact; every byte it returns is part of a chunk
// that has just been compared with the manifest. It belongs to one goroutine.
type Reader struct {
	content content
	offset  int64 // of the next byte in the artefact
	end     int64
	buf     *[]byte
	loaded  int // chunk that buf holds, -1 for none
}

// Reader starts reading bytes [offset, offset+length) of the artefact called
// name. Close it when done.
func (i *Image) Reader(name string, offset, length int64) (*Reader, error) {
	c, ok := i.content[name]
	if !ok {
		return nil, fmt.Errorf("read artefact: there is no %q", name)
	}
	if offset < 0 || length < 0 || offset > c.artefact.Size || length > c.artefact.Size-offset {
		return nil, fmt.Errorf("read artefact %s: range %d+%d is outside of its %d bytes", name, offset, length, c.artefact.Size)
	}
	return &Reader{content: c, offset: offset, end: offset + length, buf: buffers.Get().(*[]byte), loaded: -1}, nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	piece, err := r.Next(len(p))
	if err != nil {
		return 0, err
	}
	return copy(p, piece), nil
}

// Offset returns the offset of the next byte in the artefact.
func (r *Reader) Offset() int64 { return r.offset }

// Close gives the buffer back; the last piece must not be used any more.
func (r *Reader) Close() {
	if r.buf != nil {
		buffers.Put(r.buf)
		r.buf = nil
		r.end = r.offset
	}
}

// Next returns at most limit bytes, never across a chunk's end, and io.EOF at
// the end of the range. They are valid until the next call.
func (r *Reader) Next(limit int) ([]byte, error) {
	if r.offset >= r.end {
		return nil, io.EOF
	}
	i := int(r.offset / manifest.ChunkSize)
	start, length := r.content.artefact.ChunkRange(i)
	chunk := (*r.buf)[:length]
	if r.loaded != i {
		r.loaded = -1
		if n, err := r.content.bytes.ReadAt(chunk, start); n < len(chunk) {
			return nil, fmt.Errorf("read artefact %s: %w", r.content.artefact.Name, err)
		}
		if err := r.content.artefact.CheckChunk(i, chunk); err != nil {
			return nil, err
		}
		r.loaded = i
	}
	piece := chunk[r.offset-start:]
	piece = piece[:min(int64(len(piece)), r.end-r.offset, int64(limit))]
	r.offset += int64(len(piece))
	return piece, nil
}
