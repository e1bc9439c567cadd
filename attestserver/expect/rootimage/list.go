package rootimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// Limits of List.
const (
	maxEntries = 1 << 16 // of one directory
	maxTarget  = 4096    // bytes of a symbolic link
)

// Entry is one name in a directory.
type Entry struct {
	Name     string
	Mode     uint32 // type and permissions as in stat(2)
	UID, GID uint32
	Size     int64  // of a regular file
	Time     int64  // nanoseconds since 1970
	Target   string // of a symbolic link
}

// Types in Mode.
const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeLink    = 0o120000
)

// IsDir tells whether the entry is a directory.
func (e Entry) IsDir() bool { return e.Mode&modeType == modeDir }

// IsRegular tells whether the entry is a regular file.
func (e Entry) IsRegular() bool { return e.Mode&modeType == modeRegular }

// Inode types beside those of inode.go, and what stat(2) calls them. Extended
// ones are seven higher.
var typeBits = map[uint16]uint32{1: modeDir, 2: modeRegular, 3: modeLink, 4: 0o060000, 5: 0o020000, 6: 0o010000, 7: 0o140000}

// List returns a directory's entries, sorted by name. It returns an error that
// is fs.ErrNotExist where there is no such directory.
func (f *FS) List(path string) ([]Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, err := f.walk(path)
	if err != nil {
		return nil, err
	}
	if dir.kind != kindDir {
		return nil, fmt.Errorf("%.120q: %w", path, fs.ErrNotExist)
	}
	if dir.size < 3 || dir.size > maxDirSize {
		return nil, nil // the stored size counts three bytes for "." and ".."
	}
	var out []Entry
	m := f.metadata(f.dirTable+uint64(dir.dirBlock), uint32(dir.dirOffset))
	le := binary.LittleEndian
	var head [12]byte
	var item [8]byte
	buf := make([]byte, maxName)
	for left := int64(dir.size) - 3; left > 0; {
		if err := m.read(head[:]); err != nil {
			return nil, err
		}
		left -= int64(len(head))
		count, start := le.Uint32(head[:])+1, le.Uint32(head[4:])
		if count > 256 || len(out) > maxEntries {
			return nil, fmt.Errorf("directory run of %d entries", count)
		}
		for range count {
			if err := m.read(item[:]); err != nil {
				return nil, err
			}
			size := int(le.Uint16(item[6:])) + 1
			if size > maxName {
				return nil, fmt.Errorf("name of %d bytes", size)
			}
			if err := m.read(buf[:size]); err != nil {
				return nil, err
			}
			left -= int64(len(item) + size)
			e, err := f.describe(uint64(start)<<16 | uint64(le.Uint16(item[:])))
			if err != nil {
				return nil, err
			}
			e.Name = string(buf[:size])
			if strings.ContainsAny(e.Name, "/\x00") {
				return nil, fmt.Errorf("name %.64q", e.Name)
			}
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// describe reads what stat(2) says of an inode.
func (f *FS) describe(ref uint64) (e Entry, err error) {
	m := f.metadata(f.inodeTable+ref>>16, uint32(ref&0xffff))
	var head [16]byte
	if err := m.read(head[:]); err != nil {
		return e, fmt.Errorf("root image: inode: %w", err)
	}
	le := binary.LittleEndian
	kind := le.Uint16(head[:])
	if kind > 7 {
		kind -= 7
	}
	bits, ok := typeBits[kind]
	if !ok {
		return e, fmt.Errorf("root image: inode of type %d", kind)
	}
	e.Mode, e.Time = bits|uint32(le.Uint16(head[2:]))&0o7777, int64(le.Uint32(head[8:]))*1e9
	if e.UID, err = f.id(le.Uint16(head[4:])); err != nil {
		return e, err
	}
	if e.GID, err = f.id(le.Uint16(head[6:])); err != nil {
		return e, err
	}
	switch bits {
	case modeRegular:
		in, err := f.inode(ref)
		if err != nil {
			return e, err
		}
		e.Size = int64(in.size)
	case modeLink:
		var b [8]byte // links, length
		if err := m.read(b[:]); err != nil {
			return e, err
		}
		n := le.Uint32(b[4:])
		if n > maxTarget {
			return e, fmt.Errorf("root image: symbolic link of %d bytes", n)
		}
		target := make([]byte, n)
		if err := m.read(target); err != nil {
			return e, err
		}
		e.Target = string(target)
	}
	return e, nil
}

// id reads a user or group from the table that inodes point into.
func (f *FS) id(i uint16) (uint32, error) {
	if f.ids == nil {
		var b [96]byte
		if _, err := f.r.ReadAt(b[:], 0); err != nil {
			return 0, fmt.Errorf("root image: superblock: %w", err)
		}
		le := binary.LittleEndian
		n := int(le.Uint16(b[26:]))
		for k := 0; k < n; k += metadataSize / 4 {
			var pos [8]byte
			if err := f.readAt(pos[:], le.Uint64(b[48:])+uint64(k/(metadataSize/4))*8); err != nil {
				return 0, err
			}
			table := make([]byte, 4*min(n-k, metadataSize/4))
			if err := f.metadata(le.Uint64(pos[:]), 0).read(table); err != nil {
				return 0, err
			}
			for ; len(table) > 0; table = table[4:] {
				f.ids = append(f.ids, le.Uint32(table))
			}
		}
	}
	if int(i) >= len(f.ids) {
		return 0, errors.New("root image: an owner that is not in its table")
	}
	return f.ids[i], nil
}

// Reader reads a regular file of a directory that List has named.
func (f *FS) Reader(path string) (io.Reader, error) {
	file, err := f.Lookup(path)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(file, 0, file.Size()), nil
}
