// Package rootimage reads files out of the signed root image: a squashfs 4.0
// that lies at the start of root.img. The expectations are the only callers.
// It holds a few blocks in memory and never the whole image, follows no
// symbolic link (the kernel shows resolved paths) and is not safe for
// concurrent use.
//
// The format is the kernel's, Documentation/filesystems/squashfs.rst.
package rootimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
)

const (
	magic         = 0x73717368
	metadataSize  = 8192
	noFragment    = 0xffffffff
	maxBlockSize  = 1 << 20
	maxFileBlocks = 1 << 20 // of one file
	maxName       = 256
	maxDirSize    = 64 << 20
	maxDepth      = 64
	maxOpenFiles  = 2048
)

// ErrNotRegular is a path that leads to something else than a regular file.
var ErrNotRegular = errors.New("not a regular file")

// FS is an opened root image. Its methods and those of its files may be called
// concurrently: one reads at a time.
type FS struct {
	mu         sync.Mutex // guards the caches, which every read fills
	r          io.ReaderAt
	blockSize  uint32
	fragments  uint32
	unpack     unpacker
	root       uint64
	inodeTable uint64
	dirTable   uint64
	fragTable  uint64
	used       uint64
	meta, data *cache
	files      map[string]*File
	ids        []uint32
}

// Open reads the superblock.
func Open(r io.ReaderAt) (*FS, error) {
	var b [96]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return nil, fmt.Errorf("root image: superblock: %w", err)
	}
	le := binary.LittleEndian
	f := &FS{r: r, blockSize: le.Uint32(b[12:]), fragments: le.Uint32(b[16:]), root: le.Uint64(b[32:]), used: le.Uint64(b[40:]),
		inodeTable: le.Uint64(b[64:]), dirTable: le.Uint64(b[72:]), fragTable: le.Uint64(b[80:]), files: map[string]*File{}}
	major, minor := le.Uint16(b[28:]), le.Uint16(b[30:])
	switch {
	case le.Uint32(b[:]) != magic:
		return nil, errors.New("root image: not a squashfs")
	case major != 4 || minor != 0:
		return nil, fmt.Errorf("root image: squashfs %d.%d, want 4.0", major, minor)
	case f.blockSize < 4096 || f.blockSize > maxBlockSize || f.blockSize&(f.blockSize-1) != 0:
		return nil, fmt.Errorf("root image: blocks of %d bytes", f.blockSize)
	}
	var err error
	if f.unpack, err = newUnpacker(le.Uint16(b[20:])); err != nil {
		return nil, err
	}
	f.meta = newCache(1 << 20)
	f.data = newCache(max(4<<20, 2*int(f.blockSize)))
	return f, nil
}

// Lookup finds a regular file by its absolute path. It returns an error that
// is fs.ErrNotExist or ErrNotRegular where there is none.
func (f *FS) Lookup(path string) (*File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file := f.files[path]; file != nil {
		return file, nil
	}
	in, err := f.walk(path)
	if err != nil {
		return nil, err
	}
	if in.kind != kindFile {
		return nil, fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	if len(f.files) >= maxOpenFiles {
		clear(f.files)
	}
	file := &File{fs: f, inode: in}
	f.files[path] = file
	return file, nil
}

// ReadFile returns a whole file of at most max bytes.
func (f *FS) ReadFile(path string, max int64) ([]byte, error) {
	file, err := f.Lookup(path)
	if err != nil {
		return nil, err
	}
	if file.Size() > max {
		return nil, fmt.Errorf("%s: %d bytes, at most %d are read", path, file.Size(), max)
	}
	b := make([]byte, file.Size())
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, file.Size()), b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func (f *FS) walk(path string) (*inode, error) {
	if !strings.HasPrefix(path, "/") || len(path) > 4096 || strings.Count(path, "/") > maxDepth {
		return nil, fmt.Errorf("%.120q: %w", path, fs.ErrInvalid)
	}
	in, err := f.inode(f.root)
	if err != nil {
		return nil, err
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if part == "" && in.kind == kindDir {
			continue
		}
		if in.kind != kindDir || part == "." || part == ".." {
			return nil, fmt.Errorf("%.120q: %w", path, fs.ErrNotExist)
		}
		ref, err := f.entry(in, part)
		if err != nil {
			return nil, fmt.Errorf("%.120q: %w", path, err)
		}
		if in, err = f.inode(ref); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// entry finds a name in a directory and returns the reference of its inode.
func (f *FS) entry(dir *inode, name string) (uint64, error) {
	// The stored size counts three bytes for "." and "..".
	if dir.size < 3 {
		return 0, fs.ErrNotExist
	}
	if dir.size > maxDirSize {
		return 0, fmt.Errorf("directory of %d bytes", dir.size)
	}
	m := f.metadata(f.dirTable+uint64(dir.dirBlock), uint32(dir.dirOffset))
	left := int64(dir.size) - 3
	le := binary.LittleEndian
	var head [12]byte
	var item [8]byte
	buf := make([]byte, maxName)
	for left > 0 {
		if err := m.read(head[:]); err != nil {
			return 0, err
		}
		left -= int64(len(head))
		count, start := le.Uint32(head[:])+1, le.Uint32(head[4:])
		if count > 256 {
			return 0, fmt.Errorf("directory run of %d entries", count)
		}
		for range count {
			if err := m.read(item[:]); err != nil {
				return 0, err
			}
			size := int(le.Uint16(item[6:])) + 1
			if size > maxName {
				return 0, fmt.Errorf("name of %d bytes", size)
			}
			if err := m.read(buf[:size]); err != nil {
				return 0, err
			}
			left -= int64(len(item) + size)
			if string(buf[:size]) == name {
				return uint64(start)<<16 | uint64(le.Uint16(item[:])), nil
			}
		}
	}
	return 0, fs.ErrNotExist
}
