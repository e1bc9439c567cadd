package expect

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"

	"portcullis/attestserver/protocol"
)

// openedLeaves is how many pieces of files one question of op files opens.
const openedLeaves = 8

// leaves are the pieces of all regular files in an image's trees.
type leaves struct {
	files []leafFile
	total uint64 // pieces
}

type leafFile struct {
	path string
	upTo uint64 // pieces of this file and of those before it
}

// leavesOf lists the pieces of a tree, without the files that change at boot.
func leavesOf(tree map[string]*treeDir) *leaves {
	l := &leaves{}
	for _, dir := range tree {
		for _, e := range dir.entries {
			if _, ok := booted[e.Path]; ok || e.Mode&typeMask != typeRegular || e.Size == 0 {
				continue
			}
			l.total += uint64(e.Size+protocol.LeafSize-1) / protocol.LeafSize
			l.files = append(l.files, leafFile{e.Path, l.total})
		}
	}
	return l
}

// pick draws a piece: each of all pieces is as likely.
func (l *leaves) pick(r io.Reader) (protocol.Leaf, error) {
	b, err := draw(r, 16)
	if err != nil {
		return protocol.Leaf{}, err
	}
	// 128 bits modulo far less: the bias is below 2^-64.
	n := modulo(b, l.total)
	i, _ := slices.BinarySearchFunc(l.files, n, func(f leafFile, n uint64) int {
		if f.upTo <= n {
			return -1
		}
		return 1
	})
	first := uint64(0)
	if i > 0 {
		first = l.files[i-1].upTo
	}
	return protocol.Leaf{Path: l.files[i].path, Offset: int64(n-first) * protocol.LeafSize}, nil
}

// modulo is a 16-byte number modulo m, which is below 2^56.
func modulo(b []byte, m uint64) (n uint64) {
	for _, c := range b {
		n = (n<<8 | uint64(c)) % m
	}
	return n
}

// pieces are what leaves are read into.
var pieces = sync.Pool{New: func() any { return new([protocol.LeafSize]byte) }}

// opened judges the pieces that a question has opened.
func (e *Files) opened(j *judge, in protocol.JudgeInput, macs *protocol.MACs, d *protocol.FilesData) error {
	var asked protocol.FilesParams
	if err := protocol.DecodeOp(in.Params, protocol.MaxParams, &asked); err != nil {
		return err
	}
	if len(d.Opened) != len(asked.Opened) {
		j.fatal(ReasonMalformed, "%d leaves of %d", len(d.Opened), len(asked.Opened))
		return nil
	}
	piece := pieces.Get().(*[protocol.LeafSize]byte)
	defer pieces.Put(piece)
	for i, l := range asked.Opened {
		f, err := e.files.Lookup(l.Path)
		if err != nil {
			return err
		}
		n, err := f.ReadAt(piece[:], l.Offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(d.Opened[i], macs.LeafMAC(i, l, piece[:n])) {
			j.fatal(ReasonFilesContent, "%s: the %d bytes at %d are not the image's", l.Path, n, l.Offset)
		}
	}
	return nil
}
