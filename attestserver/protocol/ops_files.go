package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// Limits of op files.
const (
	MaxTrees       = 32       // roots in one question
	MaxTreeDirs    = 8192     // directories in one answer
	MaxTreeEntries = 65536    // entries below all roots
	MaxTreeChanged = 1024     // entries that are listed because they are not the image's
	TreeMACSize    = 8        // bytes
	MaxLeaves      = 64       // pieces of files in one question
	LeafSize       = 64 << 10 // bytes of one piece
)

// FilesParams says which trees are walked and where the content counts as well.
type FilesParams struct {
	Roots   []string `json:"roots"`   // directories; one that does not exist is left out
	Content []string `json:"content"` // directories below which the content of files is read
	Opened  []Leaf   `json:"opened"`  // pieces of files that are read too
}

// Leaf is a piece of a file: LeafSize bytes, or what there is before its end.
type Leaf struct {
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
}

// Check bounds the lists and strings.
func (p *FilesParams) Check() error {
	if len(p.Roots) == 0 {
		return errors.New("no tree to walk")
	}
	if err := atMost("trees", max(len(p.Roots), len(p.Content)), MaxTrees); err != nil {
		return err
	}
	for _, d := range append(p.Roots, p.Content...) {
		if !strings.HasPrefix(d, "/") || len(d) > MaxString {
			return fmt.Errorf("tree %.64q", d)
		}
	}
	if err := atMost("leaves", len(p.Opened), MaxLeaves); err != nil {
		return err
	}
	for _, l := range p.Opened {
		if !strings.HasPrefix(l.Path, "/") || len(l.Path) > MaxString || l.Offset < 0 {
			return fmt.Errorf("leaf %d of %.64q", l.Offset, l.Path)
		}
	}
	return nil
}

// Reads tells whether the content of a file counts.
func (p *FilesParams) Reads(path string) bool {
	for _, d := range p.Content {
		if strings.HasPrefix(path, d+"/") {
			return true
		}
	}
	return false
}

// TreeEntry is what one name in a directory is.
type TreeEntry struct {
	Path   string `json:"path"`
	Mode   uint32 `json:"mode"` // type and permissions as in stat(2)
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`   // of a regular file, else 0
	CTime  int64  `json:"ctime"`  // nanoseconds; 0 of a directory
	Target string `json:"target"` // of a symbolic link
	SHA256 []byte `json:"sha256"` // of a regular file whose content counts
}

// TreeDir is one directory with a keyed digest over itself and its entries.
type TreeDir struct {
	Path string `json:"path"`
	MAC  []byte `json:"mac"`
}

// FilesData is the answer of op files.
type FilesData struct {
	Dirs    []TreeDir   `json:"dirs"`    // in the order of their paths
	Changed []TreeEntry `json:"changed"` // entries whose time is not of an image
	Opened  [][]byte    `json:"opened"`  // digest of each leaf that was asked for; empty where it cannot be read
}

// Check bounds the lists and strings.
func (d *FilesData) Check() error {
	if err := atMost("directories", len(d.Dirs), MaxTreeDirs); err != nil {
		return err
	}
	if err := atMost("changed entries", len(d.Changed), MaxTreeChanged); err != nil {
		return err
	}
	if err := atMost("leaves", len(d.Opened), MaxLeaves); err != nil {
		return err
	}
	for _, m := range d.Opened {
		if len(m) != 0 && len(m) != TreeMACSize {
			return errors.New("digest of a leaf of another size")
		}
	}
	for _, t := range d.Dirs {
		if len(t.MAC) != TreeMACSize {
			return errors.New("digest of a directory of another size")
		}
		if err := short("directory", t.Path); err != nil {
			return err
		}
	}
	for _, e := range d.Changed {
		if len(e.SHA256) != 0 && len(e.SHA256) != 32 {
			return errors.New("digest of a file of another size")
		}
		if err := short("entry", e.Path, e.Target); err != nil {
			return err
		}
	}
	return nil
}

// TreeMAC is the keyed digest of a directory: of itself (an entry whose path is
// its own) and of its entries, sorted by path.
func (m *MACs) TreeMAC(dir string, self TreeEntry, entries []TreeEntry) []byte {
	h := m.begin("files-directory", []byte(dir))
	kept := treeBuffers.Get().(*[]byte)
	b := self.append((*kept)[:0])
	for _, e := range entries {
		if b = e.append(b); len(b) > 12<<10 {
			h.Write(b)
			b = b[:0]
		}
	}
	h.Write(b)
	if cap(b) == cap(*kept) {
		treeBuffers.Put(kept)
	}
	return bytes.Clone(m.end()[:TreeMACSize])
}

// treeBuffers are what entries are written down in, to be hashed.
var treeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 16<<10); return &b }}

// append writes an entry as TreeMAC digests it.
func (e *TreeEntry) append(b []byte) []byte {
	field := func(f string) { b = append(binary.BigEndian.AppendUint64(b, uint64(len(f))), f...) }
	field(e.Path)
	for _, v := range []uint64{uint64(e.Mode), uint64(e.UID), uint64(e.GID), uint64(e.Size), uint64(e.CTime)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	field(e.Target)
	return append(binary.BigEndian.AppendUint64(b, uint64(len(e.SHA256))), e.SHA256...)
}

// LeafMAC is the keyed digest of the i-th leaf of a question.
func (m *MACs) LeafMAC(i int, l Leaf, piece []byte) []byte {
	h := m.begin("files-leaf", []byte(l.Path))
	m.t = binary.BigEndian.AppendUint64(m.t, uint64(i))
	m.t = binary.BigEndian.AppendUint64(m.t, uint64(l.Offset))
	h.Write(m.t)
	h.Write(piece)
	return bytes.Clone(m.end()[:TreeMACSize])
}
