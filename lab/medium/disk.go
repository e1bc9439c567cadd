// Package medium is a disk for a machine of the lab that loses what a real one
// loses when the power fails: writes that were answered but not flushed. It
// speaks NBD (the protocol of QEMU's network block driver) on a unix socket; the
// bytes lie in a file, which always holds what the machine would read.
package medium

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Sector is what a disk writes whole or not at all, in bytes.
const Sector = 512

// cacheSize bounds what may be unflushed, in bytes: beyond it the oldest write is
// taken for safe, as a disk that has no room left in its cache stores it.
const cacheSize = 64 << 20

// Disk is a disk with power. Its methods may be called concurrently.
type Disk struct {
	file     *os.File
	size     int64
	listener net.Listener
	serving  sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]bool
	closed   bool
	off      bool          // no request is answered any more
	cut      bool          // and what was unsafe is lost
	done     chan struct{} // closed by Close
	requests int           // writes and flushes so far
	armed    bool          // the power fails before the next one
	region   Region        // after so many more writes here
	left     int
	counted  map[Region]int
	fired    chan struct{}
	unsafe   []write // in the order of their arrival
	cached   int64   // bytes in unsafe
}

// write is what stood on the disk before a write that is not flushed yet.
type write struct {
	at     int64
	before []byte
}

// Loss is what a power cut did.
type Loss struct {
	Requests int // writes and flushes that the disk had answered
	Unsafe   int // writes that were not flushed
	Lost     int // of these, writes of which nothing is left
	Torn     int // of these, writes of which some sectors are left
}

func (l Loss) String() string {
	return fmt.Sprintf("request %d, %d unflushed: %d lost, %d torn", l.Requests, l.Unsafe, l.Lost, l.Torn)
}

// Serve puts the file image on the unix socket at path until Close.
func Serve(image, path string) (*Disk, error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("medium: %w", err)
	}
	st, err := f.Stat()
	if err == nil {
		os.Remove(path)
		var l net.Listener
		if l, err = net.Listen("unix", path); err == nil {
			d := &Disk{file: f, size: st.Size(), listener: l, conns: map[net.Conn]bool{}, done: make(chan struct{}), fired: make(chan struct{}),
				counted: map[Region]int{}}
			d.serving.Go(d.accept)
			return d, nil
		}
	}
	f.Close()
	return nil, fmt.Errorf("medium: %w", err)
}

func (d *Disk) accept() {
	for {
		c, err := d.listener.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		if d.closed {
			c.Close()
		} else {
			d.conns[c] = true
			d.serving.Go(func() {
				defer c.Close()
				serve(c, d)
			})
		}
		d.mu.Unlock()
	}
}

// Region is a part of the disk, in bytes.
type Region struct{ From, To int64 }

// CutAfter lets the power fail when n more writes into a region have been
// answered: the next write or flush, wherever, waits for ever, as do all questions
// after it. Fired tells.
func (d *Disk) CutAfter(n int, in Region) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed, d.left, d.region = true, n, in
}

// Fired is closed when the moment of CutAfter has come.
func (d *Disk) Fired() <-chan struct{} { return d.fired }

// Count counts the writes into a region from now on, for Writes.
func (d *Disk) Count(in Region) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counted[in] = 0
}

// Writes is how many writes into a region there were since Count.
func (d *Disk) Writes(in Region) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counted[in]
}

// Cut is the end of the power: nothing is answered any more, and of the writes
// that were not flushed r loses some and tears some. The machine must then be
// killed before Close.
func (d *Disk) Cut(r *rand.Rand) (Loss, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut {
		return Loss{}, errors.New("medium: the power is off already")
	}
	d.off, d.cut = true, true
	l := Loss{Requests: d.requests, Unsafe: len(d.unsafe)}
	final := map[int64]bool{} // sectors on which a later write has stayed
	for i := len(d.unsafe) - 1; i >= 0; i-- {
		w := d.unsafe[i]
		mode := r.IntN(3) // the whole write stays, is lost, is torn
		kept, lost := 0, 0
		for off := int64(0); off < int64(len(w.before)); off += Sector {
			n := min(Sector, int64(len(w.before))-off)
			at := w.at + off
			stays := mode == 0 || mode == 2 && r.IntN(2) == 0
			if stays {
				final[at/Sector] = true
				kept++
				continue
			}
			lost++
			if final[at/Sector] {
				continue
			}
			if _, err := d.file.WriteAt(w.before[off:off+n], at); err != nil {
				return l, fmt.Errorf("medium: %w", err)
			}
		}
		switch {
		case kept == 0:
			l.Lost++
		case lost > 0:
			l.Torn++
		}
	}
	d.unsafe, d.cached = nil, 0
	return l, nil
}

// Close ends the service. Without Cut before, everything that was written stays.
func (d *Disk) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	close(d.done)
	err := d.listener.Close()
	for c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.serving.Wait()
	return errors.Join(err, d.file.Close())
}

// errOff is a request to a disk without power; it is never answered.
var errOff = errors.New("medium: no power")

// enter begins a request; change says that it writes or flushes. The caller
// unlocks d.mu where there is no error.
func (d *Disk) enter(change bool) error {
	d.mu.Lock()
	if change && d.armed && d.left <= 0 && !d.off {
		d.armed, d.off = false, true
		close(d.fired)
	}
	if d.off {
		d.mu.Unlock()
		<-d.done
		return errOff
	}
	if change {
		d.requests++
	}
	return nil
}

// count notes a write that will be answered.
func (d *Disk) count(at, n int64) {
	if d.region.meets(at, n) {
		d.left--
	}
	for r := range d.counted {
		if r.meets(at, n) {
			d.counted[r]++
		}
	}
}

func (r Region) meets(at, n int64) bool { return at < r.To && at+n > r.From }

func (d *Disk) read(b []byte, at int64) error {
	if err := d.enter(false); err != nil {
		return err
	}
	defer d.mu.Unlock()
	_, err := d.file.ReadAt(b, at)
	return err
}

// write stores b, or n zeros where b is nil. A write that is through (FUA) is
// safe when it is answered; the others before it are not.
func (d *Disk) write(b []byte, n, at int64, through bool) error {
	if err := d.enter(true); err != nil {
		return err
	}
	defer d.mu.Unlock()
	d.count(at, n)
	before := make([]byte, n)
	if _, err := d.file.ReadAt(before, at); err != nil {
		return err
	}
	if b == nil {
		b = make([]byte, n)
	}
	if _, err := d.file.WriteAt(b, at); err != nil {
		return err
	}
	if through {
		d.settle(at, n)
		return nil
	}
	d.unsafe, d.cached = append(d.unsafe, write{at, before}), d.cached+n
	for d.cached > cacheSize {
		first := d.unsafe[0]
		d.unsafe, d.cached = d.unsafe[1:], d.cached-int64(len(first.before))
	}
	return nil
}

// settle makes sectors safe as they are now: no earlier write there is taken back.
func (d *Disk) settle(at, n int64) {
	var now []write
	var cached int64
	for _, w := range d.unsafe {
		end := w.at + int64(len(w.before))
		if end <= at || w.at >= at+n {
			now, cached = append(now, w), cached+int64(len(w.before))
			continue
		}
		if w.at < at {
			now = append(now, write{w.at, w.before[:at-w.at]})
			cached += at - w.at
		}
		if end > at+n {
			now = append(now, write{at + n, w.before[at+n-w.at:]})
			cached += end - at - n
		}
	}
	d.unsafe, d.cached = now, cached
}

func (d *Disk) flush() error {
	if err := d.enter(true); err != nil {
		return err
	}
	defer d.mu.Unlock()
	d.unsafe, d.cached = nil, 0
	return nil
}

// trim forgets at once what stood there.
func (d *Disk) trim(at, n int64) error {
	if err := d.enter(true); err != nil {
		return err
	}
	defer d.mu.Unlock()
	return unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
}
