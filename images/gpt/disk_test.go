package gpt

import (
	"bytes"
	"io"
)

// disk is a device in memory; only what was written takes space.
type disk struct {
	sectors map[int64][SectorSize]byte
	size    int64
	writes  []write
}

type write struct {
	off int64
	b   []byte
}

func newDisk(sectors uint64) *disk {
	return &disk{sectors: map[int64][SectorSize]byte{}, size: int64(sectors) * SectorSize}
}

func (d *disk) ReadAt(b []byte, off int64) (int, error) {
	for i := 0; i < len(b); {
		at := off + int64(i)
		if at >= d.size {
			return i, io.EOF
		}
		s := d.sectors[at/SectorSize]
		i += copy(b[i:], s[at%SectorSize:])
	}
	return len(b), nil
}

func (d *disk) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > d.size {
		return 0, io.ErrShortWrite
	}
	d.writes = append(d.writes, write{off, bytes.Clone(b)})
	d.put(b, off)
	return len(b), nil
}

func (d *disk) put(b []byte, off int64) {
	for len(b) > 0 {
		s := d.sectors[off/SectorSize]
		n := copy(s[off%SectorSize:], b)
		d.sectors[off/SectorSize] = s
		b, off = b[n:], off+int64(n)
	}
}

func (d *disk) clone() *disk {
	c := &disk{sectors: map[int64][SectorSize]byte{}, size: d.size}
	for k, v := range d.sectors {
		c.sectors[k] = v
	}
	return c
}

func (d *disk) count() uint64 { return uint64(d.size / SectorSize) }

// failing refuses the nth write.
type failing struct {
	*disk
	left int
}

func (f *failing) WriteAt(b []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return f.disk.WriteAt(b, off)
}
