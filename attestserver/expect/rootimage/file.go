package rootimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// File is one regular file of the image.
type File struct {
	fs    *FS
	inode *inode
}

// Size returns the file's size in bytes.
func (f *File) Size() int64 { return int64(f.inode.size) }

// Time returns when the file was made, in nanoseconds since 1970: squashfs keeps
// whole seconds and shows them as every time of the file.
func (f *File) Time() int64 { return int64(f.inode.mtime) * 1e9 }

// Raises tells whether a process that executes the file can get more power than
// it had: by the set-user-id or set-group-id bit, or by capabilities, which are an
// extended attribute.
func (f *File) Raises() bool { return f.inode.mode&0o6000 != 0 || f.inode.xattrs }

// Number returns the file's inode number.
func (f *File) Number() uint32 { return f.inode.number }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := 0
	for n < len(p) {
		at := uint64(off) + uint64(n)
		if at >= f.inode.size {
			return n, io.EOF
		}
		b, err := f.block(at / uint64(f.fs.blockSize))
		if err != nil {
			return n, err
		}
		in := at % uint64(f.fs.blockSize)
		if in >= uint64(len(b)) {
			return n, io.ErrUnexpectedEOF
		}
		n += copy(p[n:], b[in:])
	}
	return n, nil
}

// block returns block i of the file, as long as the file has it.
func (f *File) block(i uint64) ([]byte, error) {
	in, size := f.inode, uint64(f.fs.blockSize)
	want := uint32(min(size, in.size-i*size))
	if i >= uint64(len(in.blocks)) {
		return f.tail(want)
	}
	at := in.start
	for _, b := range in.blocks[:i] {
		at += uint64(b &^ stored)
	}
	packed := in.blocks[i] &^ stored
	if packed == 0 {
		return make([]byte, want), nil // a hole
	}
	if b := f.fs.data.get(at); b != nil {
		return b.data, nil
	}
	b, err := f.fs.block(at, packed, in.blocks[i]&stored == 0, int(size))
	if err != nil {
		return nil, err
	}
	if uint32(len(b)) != want {
		return nil, fmt.Errorf("root image: block of %d bytes, want %d", len(b), want)
	}
	f.fs.data.put(at, &cached{data: b})
	return b, nil
}

// stored marks a data block that is not compressed.
const stored = 1 << 24

// tail returns the end of the file, which shares a block with other tails.
func (f *File) tail(want uint32) ([]byte, error) {
	in := f.inode
	if in.fragment >= f.fs.fragments {
		return nil, fmt.Errorf("root image: fragment %d of %d", in.fragment, f.fs.fragments)
	}
	var pos [8]byte
	if err := f.fs.readAt(pos[:], f.fs.fragTable+uint64(in.fragment/512)*8); err != nil {
		return nil, err
	}
	var e [16]byte
	if err := f.fs.metadata(binary.LittleEndian.Uint64(pos[:]), in.fragment%512*16).read(e[:]); err != nil {
		return nil, err
	}
	at, size := binary.LittleEndian.Uint64(e[:]), binary.LittleEndian.Uint32(e[8:])
	var data []byte
	if b := f.fs.data.get(at); b != nil {
		data = b.data
	} else {
		b, err := f.fs.block(at, size&^stored, size&stored == 0, int(f.fs.blockSize))
		if err != nil {
			return nil, err
		}
		f.fs.data.put(at, &cached{data: b})
		data = b
	}
	if uint64(in.fragOffset)+uint64(want) > uint64(len(data)) {
		return nil, errors.New("root image: fragment is too short")
	}
	return data[in.fragOffset:][:want], nil
}

// block reads and unpacks a block of at most max bytes.
func (f *FS) block(at uint64, size uint32, packed bool, max int) ([]byte, error) {
	if size == 0 || int(size) > max {
		return nil, fmt.Errorf("root image: block at %d of %d bytes", at, size)
	}
	b := make([]byte, size)
	if err := f.readAt(b, at); err != nil {
		return nil, err
	}
	if !packed {
		return b, nil
	}
	out, err := f.unpack(b, max)
	if err != nil {
		return nil, fmt.Errorf("root image: block at %d: %w", at, err)
	}
	return out, nil
}

func (f *FS) readAt(p []byte, at uint64) error {
	if at > f.used || uint64(len(p)) > f.used-at {
		return fmt.Errorf("root image: %d bytes at %d are behind its end", len(p), at)
	}
	if _, err := f.r.ReadAt(p, int64(at)); err != nil {
		return fmt.Errorf("root image: %w", err)
	}
	return nil
}
