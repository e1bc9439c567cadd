// Package verity is the kernel's fs-verity, as far as the verifier needs it: the digest
// of a file, computed here; switching verity on for a file; asking the kernel for a
// file's digest (Documentation/filesystems/fsverity.rst).
//
// The digest is the root of a tree of SHA-256 over blocks of 4096 bytes, without a
// salt. A list of files that was made of it can be held against a file in two ways: all
// of it is read and hashed, as for any other digest; or the kernel is asked, which then
// has already refused every writer and holds each page against the tree when it is read.
//
// Packages image and guard use it. Enable changes the file's inode and nothing else here
// writes anything.
package verity

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"sync"
)

// BlockSize is that of data and of tree, bytes.
const BlockSize = 4096

// SegmentSize is how much data one full block of the tree's lowest level covers, bytes:
// segments are hashed apart from each other.
const SegmentSize = BlockSize / sha256.Size * BlockSize

// Sum is the digest of a file: of its descriptor, which has its size and the tree's root.
type Sum = [sha256.Size]byte

// levels is a tree above its lowest level, as far as it is known. A file has at most
// 2^63 bytes, and each level makes it 128 times smaller.
type levels struct {
	block [8][BlockSize]byte
	used  [8]int // bytes of the block
	total [8]int64
}

// add puts the next hash into level i.
func (l *levels) add(i int, h Sum) {
	l.used[i] += copy(l.block[i][l.used[i]:], h[:])
	l.total[i]++
	if l.used[i] == BlockSize {
		l.up(i)
	}
}

// up hashes the block of a level into the next one.
func (l *levels) up(i int) {
	h := sha256.Sum256(l.block[i][:])
	clear(l.block[i][:])
	l.used[i] = 0
	l.add(i+1, h)
}

// root ends the tree. Nothing was added: zeros, the root of an empty file.
func (l *levels) root() Sum {
	for i := range l.block {
		switch {
		case l.total[i] == 0:
			return Sum{}
		case l.total[i] == 1:
			return Sum(l.block[i][:sha256.Size])
		case l.used[i] > 0:
			l.up(i)
		}
	}
	panic("verity: a tree of more than eight levels")
}

// segment is the hash of the block that covers b, of which there is more than one
// block of data, or which is one of several segments; at most SegmentSize bytes.
func segment(b []byte) Sum {
	var block [BlockSize]byte
	for n := 0; len(b) > 0; n += sha256.Size {
		var h Sum
		h, b = leaf(b)
		copy(block[n:], h[:])
	}
	return sha256.Sum256(block[:])
}

// leaf hashes the first block of b, with zeros behind its end, and returns what is left.
func leaf(b []byte) (Sum, []byte) {
	if len(b) >= BlockSize {
		return sha256.Sum256(b[:BlockSize]), b[BlockSize:]
	}
	var last [BlockSize]byte
	copy(last[:], b)
	return sha256.Sum256(last[:]), nil
}

// descriptor hashes struct fsverity_descriptor: version 1, SHA-256 (1), blocks of 2^12
// bytes, no salt, no signature; size at 8, root at 16; 256 bytes.
func descriptor(size int64, root Sum) Sum {
	var d [256]byte
	d[0], d[1], d[2] = 1, 1, 12
	binary.LittleEndian.PutUint64(d[8:], uint64(size))
	copy(d[16:], root[:])
	return sha256.Sum256(d[:])
}

// only is the digest of a file of one segment or less.
func only(b []byte) Sum {
	var root Sum
	switch {
	case len(b) > BlockSize:
		root = segment(b)
	case len(b) > 0:
		root, _ = leaf(b)
	}
	return descriptor(int64(len(b)), root)
}

// ahead is how many segments are hashed beside the caller, each in a buffer of SegmentSize.
const ahead = 3

var buffers = sync.Pool{New: func() any { return new([SegmentSize]byte) }}

// Digest of a file that is written to it in pieces. Full segments are hashed beside
// the caller. The zero value is that of an empty file.
type Digest struct {
	size    int64
	buffer  *[SegmentSize]byte
	used    int
	pending []chan Sum // of segments, in their order
	tree    *levels    // above the segments; nil: there is none yet
}

// Write takes the next bytes. It returns no error.
func (d *Digest) Write(p []byte) (int, error) {
	n := len(p)
	d.size += int64(n)
	for len(p) > 0 {
		if d.buffer == nil {
			d.buffer = buffers.Get().(*[SegmentSize]byte)
		}
		if d.used == SegmentSize {
			d.hand()
		}
		c := copy(d.buffer[d.used:], p)
		d.used, p = d.used+c, p[c:]
	}
	return n, nil
}

// hand gives the buffer to somebody who hashes it.
func (d *Digest) hand() {
	if d.tree == nil {
		d.tree = new(levels)
	}
	for len(d.pending) >= ahead {
		d.take()
	}
	c, b, used := make(chan Sum, 1), d.buffer, d.used
	go func() {
		c <- segment(b[:used])
		buffers.Put(b)
	}()
	d.pending = append(d.pending, c)
	d.buffer, d.used = buffers.Get().(*[SegmentSize]byte), 0
}

func (d *Digest) take() {
	d.tree.add(0, <-d.pending[0])
	d.pending = d.pending[1:]
}

// Sum ends the digest, which is then that of another empty file.
func (d *Digest) Sum() Sum {
	var out Sum
	switch {
	case d.tree == nil && d.buffer == nil:
		return only(nil)
	case d.tree == nil:
		out = only(d.buffer[:d.used])
	default:
		last := segment(d.buffer[:d.used]) // never empty: a full one is kept until there is more
		for len(d.pending) > 0 {
			d.take()
		}
		d.tree.add(0, last)
		out = descriptor(d.size, d.tree.root())
	}
	buffers.Put(d.buffer)
	*d = Digest{}
	return out
}

// Of is the digest of the size bytes that r has, hashed by up to workers at a time, of which the
// caller is one: what the priority of its thread is holds for the work of one worker. A reader
// that has less is io.ErrUnexpectedEOF.
func Of(r io.ReaderAt, size int64, workers int) (Sum, error) {
	return of(r, size, workers, func(int64, []byte) {})
}

// segments is how many a file of size bytes has.
func segments(size int64) int64 { return (size + SegmentSize - 1) / SegmentSize }

// of shows each segment to also while its bytes are at hand.
func of(r io.ReaderAt, size int64, workers int, also func(i int64, b []byte)) (Sum, error) {
	sums := make([]Sum, segments(size))
	hash := segment
	if len(sums) <= 1 {
		hash = only
	}
	err := walk(r, size, workers, func(i int64, b []byte) error {
		sums[i] = hash(b)
		also(i, b)
		return nil
	})
	switch {
	case err != nil:
		return Sum{}, err
	case len(sums) == 0:
		return only(nil), nil
	case len(sums) == 1:
		return sums[0], nil
	}
	var tree levels
	for _, s := range sums {
		tree.add(0, s)
	}
	return descriptor(size, tree.root()), nil
}

// walk reads the segments of r and shows each to one of the workers. The first error ends it.
func walk(r io.ReaderAt, size int64, workers int, show func(i int64, b []byte) error) error {
	var (
		n    = segments(size)
		mu   sync.Mutex
		next int64
		bad  error
		wg   sync.WaitGroup
	)
	work := func() {
		b := buffers.Get().(*[SegmentSize]byte)
		defer buffers.Put(b)
		for {
			mu.Lock()
			i := next
			next++
			stop := bad != nil || i >= n
			mu.Unlock()
			if stop {
				return
			}
			part := b[:min(SegmentSize, size-i*SegmentSize)]
			err := readAt(r, part, i*SegmentSize)
			if err == nil {
				err = show(i, part)
			}
			if err != nil {
				mu.Lock()
				bad = err
				mu.Unlock()
				return
			}
		}
	}
	for range min(int64(workers), n) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	return bad
}

// readAt fills b.
func readAt(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
