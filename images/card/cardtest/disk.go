// Package cardtest is storage that loses power, for tests of everything that
// must survive it: the slot state, updates, first boot.
package cardtest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sort"
)

const sector = 512

// ErrPower is what every operation returns after the cut.
var ErrPower = errors.New("power cut")

// Power is one supply for several disks. It is cut at the write or sync with
// the number CutAt, counted from 0; a negative CutAt never.
type Power struct {
	CutAt int
	Ops   int // writes and syncs so far
	off   bool
}

func (p *Power) step() error {
	if p.off || p.CutAt >= 0 && p.Ops >= p.CutAt {
		p.off = true
		return ErrPower
	}
	p.Ops++
	return nil
}

// Disk is a block device with a write cache: what was written and not synced is
// on it, half on it or not on it after a cut. Sectors that were never written are zero.
type Disk struct {
	power *Power
	size  int64
	kept  map[int64][]byte // sector → bytes on the medium
	cache map[int64][]byte // written, not synced
	areas map[int64]bool   // areas of the disk that have such sectors; the rest is read at once
}

// area is the size of an area in bytes.
const area = 1 << 20

// New returns an empty disk of size bytes.
func New(p *Power, size int64) *Disk {
	return &Disk{power: p, size: size, kept: map[int64][]byte{}, cache: map[int64][]byte{}, areas: map[int64]bool{}}
}

// Size is the size in bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt reads what was written last, synced or not.
func (d *Disk) ReadAt(b []byte, at int64) (int, error) {
	if d.power.off {
		return 0, ErrPower
	}
	if at < 0 || at > d.size {
		return 0, fmt.Errorf("read at %d of %d", at, d.size)
	}
	n := 0
	for n < len(b) && at+int64(n) < d.size {
		pos := at + int64(n)
		if !d.areas[pos/area] {
			part := b[n:min(int64(len(b)), int64(n)+area-pos%area, int64(n)+d.size-pos)]
			clear(part)
			n += len(part)
			continue
		}
		part := b[n:min(len(b), n+int(sector-pos%sector))]
		if s := d.sector(pos / sector); s != nil {
			n += copy(part, s[pos%sector:])
		} else {
			clear(part)
			n += len(part)
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *Disk) sector(i int64) []byte {
	if s, ok := d.cache[i]; ok {
		return s
	}
	return d.kept[i]
}

// WriteAt writes into the cache. A write that the cut hits may have got there in part.
func (d *Disk) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > d.size {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(b), at, d.size)
	}
	was := d.power.off
	err := d.power.step()
	if err != nil && was {
		return 0, err
	}
	for n := 0; n < len(b); {
		pos := at + int64(n)
		s := make([]byte, sector)
		copy(s, d.sector(pos/sector))
		n += copy(s[pos%sector:], b[n:])
		d.cache[pos/sector], d.areas[pos/area] = s, true
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Sync makes what was written survive.
func (d *Disk) Sync() error {
	if err := d.power.step(); err != nil {
		return err
	}
	for i, s := range d.cache {
		d.kept[i] = s
	}
	clear(d.cache)
	return nil
}

// Restart gives the disk its power back, on supply p. What the cut left in the
// cache is decided sector by sector by r: written, not written, or torn
// somewhere inside. A torn sector begins with the new bytes.
func (d *Disk) Restart(p *Power, r *rand.Rand) {
	order := make([]int64, 0, len(d.cache))
	for i := range d.cache {
		order = append(order, i)
	}
	sort.Slice(order, func(a, b int) bool { return order[a] < order[b] })
	for _, i := range order {
		switch r.IntN(3) {
		case 0:
			d.kept[i] = d.cache[i]
		case 1:
			torn := make([]byte, sector)
			copy(torn, d.kept[i])
			copy(torn[:r.IntN(sector)], d.cache[i])
			d.kept[i] = torn
		}
	}
	clear(d.cache)
	d.power = p
}

// Fill puts bytes onto the medium without using power.
func (d *Disk) Fill(b []byte, at int64) {
	for n := 0; n < len(b); {
		pos := at + int64(n)
		s := make([]byte, sector)
		copy(s, d.kept[pos/sector])
		n += copy(s[pos%sector:], b[n:])
		d.kept[pos/sector], d.areas[pos/area] = s, true
	}
}

// Clone copies the medium for another run.
func (d *Disk) Clone(p *Power) *Disk {
	c := New(p, d.size)
	for i, s := range d.kept {
		c.kept[i], c.areas[i*sector/area] = s, true // sectors are replaced, never changed
	}
	return c
}
