package rootimage

import (
	"encoding/binary"
	"fmt"
)

type kind int

const (
	kindOther kind = iota
	kindDir
	kindFile
)

// inode is what is wanted of one.
type inode struct {
	kind      kind
	size      uint64
	dirBlock  uint32
	dirOffset uint16
	mtime     uint32 // seconds since 1970
	number    uint32
	mode      uint16 // permissions
	xattrs    bool   // has extended attributes

	start      uint64
	fragment   uint32
	fragOffset uint32
	blocks     []uint32
}

// noXattrs is the index of a file without extended attributes.
const noXattrs = 1<<32 - 1

// Inode types: basic and extended ones.
const (
	typeDir     = 1
	typeFile    = 2
	typeLongDir = 8
	typeLongReg = 9
)

func (f *FS) inode(ref uint64) (*inode, error) {
	m := f.metadata(f.inodeTable+ref>>16, uint32(ref&0xffff))
	var head [16]byte
	if err := m.read(head[:]); err != nil {
		return nil, fmt.Errorf("root image: inode: %w", err)
	}
	le := binary.LittleEndian
	in := &inode{mode: le.Uint16(head[2:]), mtime: le.Uint32(head[8:]), number: le.Uint32(head[12:])}
	var err error
	switch le.Uint16(head[:]) {
	case typeDir:
		var b [16]byte
		err = m.read(b[:])
		in.kind, in.dirBlock, in.size, in.dirOffset = kindDir, le.Uint32(b[0:]), uint64(le.Uint16(b[8:])), le.Uint16(b[10:])
	case typeLongDir:
		var b [24]byte
		err = m.read(b[:])
		in.kind, in.size, in.dirBlock, in.dirOffset = kindDir, uint64(le.Uint32(b[4:])), le.Uint32(b[8:]), le.Uint16(b[18:])
	case typeFile:
		var b [16]byte
		if err = m.read(b[:]); err == nil {
			in.kind, in.start, in.fragment, in.fragOffset, in.size = kindFile, uint64(le.Uint32(b[0:])), le.Uint32(b[4:]), le.Uint32(b[8:]), uint64(le.Uint32(b[12:]))
			err = f.blockList(m, in)
		}
	case typeLongReg:
		var b [40]byte
		if err = m.read(b[:]); err == nil {
			in.kind, in.start, in.size, in.fragment, in.fragOffset = kindFile, le.Uint64(b[0:]), le.Uint64(b[8:]), le.Uint32(b[28:]), le.Uint32(b[32:])
			in.xattrs = le.Uint32(b[36:]) != noXattrs
			err = f.blockList(m, in)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("root image: inode: %w", err)
	}
	return in, nil
}

func (f *FS) blockList(m *metadata, in *inode) error {
	n := in.size / uint64(f.blockSize)
	if in.fragment == noFragment && in.size%uint64(f.blockSize) != 0 {
		n++
	}
	if n > maxFileBlocks {
		return fmt.Errorf("file of %d blocks", n)
	}
	var b [4]byte
	for range n {
		if err := m.read(b[:]); err != nil {
			return err
		}
		in.blocks = append(in.blocks, binary.LittleEndian.Uint32(b[:]))
	}
	return nil
}

// metadata reads a stream of metadata blocks: each with two bytes of length
// before it, the top bit set where it is stored as it is.
type metadata struct {
	fs    *FS
	next  uint64 // position of the next block
	block []byte // what is left of this one
	skip  uint32
}

func (f *FS) metadata(at uint64, skip uint32) *metadata {
	return &metadata{fs: f, next: at, skip: skip}
}

func (m *metadata) read(p []byte) error {
	for len(p) > 0 {
		if len(m.block) == 0 {
			if err := m.load(); err != nil {
				return err
			}
		}
		n := copy(p, m.block)
		p, m.block = p[n:], m.block[n:]
	}
	return nil
}

func (m *metadata) load() error {
	at := m.next
	b, size, err := m.fs.metadataBlock(at)
	if err != nil {
		return err
	}
	m.next = at + size
	if uint64(m.skip) >= uint64(len(b)) {
		return fmt.Errorf("metadata block at %d has %d bytes", at, len(b))
	}
	m.block, m.skip = b[m.skip:], 0
	return nil
}

// metadataBlock returns a block and the bytes it takes in the image.
func (f *FS) metadataBlock(at uint64) ([]byte, uint64, error) {
	if b := f.meta.get(at); b != nil {
		return b.data, b.stored, nil
	}
	var head [2]byte
	if err := f.readAt(head[:], at); err != nil {
		return nil, 0, err
	}
	h := binary.LittleEndian.Uint16(head[:])
	size := uint32(h &^ 0x8000)
	if size == 0 || size > metadataSize {
		return nil, 0, fmt.Errorf("metadata block at %d of %d bytes", at, size)
	}
	b, err := f.block(at+2, size, h&0x8000 == 0, metadataSize)
	if err != nil {
		return nil, 0, err
	}
	if len(b) == 0 {
		return nil, 0, fmt.Errorf("metadata block at %d is empty", at)
	}
	f.meta.put(at, &cached{data: b, stored: uint64(size) + 2})
	return b, uint64(size) + 2, nil
}
