package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// copySize is how much is copied at once, bytes.
const copySize = 256 << 10

// Read takes a tar archive from a stream. It is kept in a file in dir that has no
// name, so that nobody can change it between the reading and the writing. Layers are read
// from that file while the rest of it comes in (early.go).
func Read(ctx context.Context, from io.Reader, dir string, o Options) (*Archive, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("quarantine: %w", err)
	}
	s, known, err := takeIn(ctx, from, f, o)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return read(ctx, s, o, known)
}

// takeIn copies the stream into f, and looks at it meanwhile. The caller's goroutine is the one
// that copies: a stream that stands still holds up nobody but who sends it.
func takeIn(ctx context.Context, from io.Reader, f *os.File, o Options) (*tarSource, map[int64]*contents, error) {
	file := newGrowing(f)
	e := newEarly(ctx, o)
	s := &tarSource{file: file, close: f.Close, members: map[string]member{}}
	var found error
	var panicked any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			// Who called lives through a panic; nobody would through one of this goroutine.
			if panicked = recover(); panicked != nil || found != nil {
				file.enough.Store(true)
			}
		}()
		found = s.scan(math.MaxInt64, e.member)
	}()
	err := file.fill(from, e.limits.Packed)
	<-done
	if panicked != nil {
		panic(panicked)
	}
	if err == nil {
		err = found
	}
	s.file = f
	return s, e.known, err
}

// growing is a file that is being written: who reads what is not there yet waits for it.
type growing struct {
	file   *os.File
	enough atomic.Bool // nobody wants the rest

	mu   sync.Mutex
	more sync.Cond
	size int64
	end  error // nil: there may be more
}

func newGrowing(f *os.File) *growing {
	g := &growing{file: f}
	g.more.L = &g.mu
	return g
}

// fill writes the file until the stream ends, it is longer than limit, or nobody wants more.
func (g *growing) fill(from io.Reader, limit int64) (err error) {
	b := make([]byte, copySize)
	for size := int64(0); err == nil; {
		n := 0
		for n < len(b) && err == nil && !g.enough.Load() {
			var m int
			m, err = from.Read(b[n:])
			n += m
		}
		if err == nil && g.enough.Load() {
			err = io.EOF
		}
		if _, werr := g.file.WriteAt(b[:n], size); werr != nil {
			err = werr
		}
		if size += int64(n); size > limit && (err == nil || errors.Is(err, io.EOF)) {
			err = refuse(ReasonTooLarge, "more than %d bytes", limit)
		}
		g.tell(size, err)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (g *growing) tell(size int64, end error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.size, g.end = size, end
	g.more.Broadcast()
}

// ReadAt waits until all of b is there, or nothing more comes.
func (g *growing) ReadAt(b []byte, at int64) (int, error) {
	g.mu.Lock()
	for g.end == nil && g.size-at < int64(len(b)) {
		g.more.Wait()
	}
	there, end := max(0, g.size-at), g.end
	g.mu.Unlock()
	if there >= int64(len(b)) {
		return g.file.ReadAt(b, at)
	}
	n, err := g.file.ReadAt(b[:there], at)
	if err == nil {
		err = end
	}
	return n, err
}
