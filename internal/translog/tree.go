package translog

import (
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Tiles are 8 levels of the tree high (C2SP tlog-tiles).
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// frontier is the right edge of a tree, which is all that growing needs: of
// each level of tiles the hashes of its last, partial tile. It is pure.
type frontier struct {
	size   int64
	levels [][]tlog.Hash // levels[L] has fewer than tileWidth hashes, each of a full tile of level L-1
}

// fullTile is a tile that has become full and never changes again.
type fullTile struct {
	level  int
	index  int64
	hashes []tlog.Hash
}

// add appends a leaf and returns the tiles that it filled, the lowest first.
func (f *frontier) add(leaf tlog.Hash) (full []fullTile) {
	f.size++
	span := int64(tileWidth)
	for level, h := 0, leaf; ; level++ {
		if level == len(f.levels) {
			f.levels = append(f.levels, nil)
		}
		f.levels[level] = append(f.levels[level], h)
		if len(f.levels[level]) < tileWidth {
			return full
		}
		full = append(full, fullTile{level, f.size/span - 1, f.levels[level]})
		h = perfect(f.levels[level])
		f.levels[level] = nil
		span *= tileWidth
	}
}

// root is the Merkle tree hash (RFC 6962 §2.1): the perfect subtrees from left
// to right, folded from the right.
func (f *frontier) root() tlog.Hash {
	if f.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // the empty tree needs no reader
		return h
	}
	var acc tlog.Hash
	have := false
	for _, hashes := range f.levels { // the lowest level is the rightmost
		for len(hashes) > 0 {
			n := len(hashes) & -len(hashes) // the rightmost perfect subtree
			h := perfect(hashes[len(hashes)-n:])
			if have {
				h = tlog.NodeHash(h, acc)
			}
			acc, have = h, true
			hashes = hashes[:len(hashes)-n]
		}
	}
	return acc
}

func (f *frontier) clone() frontier {
	c := frontier{size: f.size, levels: make([][]tlog.Hash, len(f.levels))}
	for i := range f.levels {
		c.levels[i] = slices.Clone(f.levels[i])
	}
	return c
}

// perfect is the root over 2^k hashes.
func perfect(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return tlog.NodeHash(perfect(hashes[:half]), perfect(hashes[half:]))
}
