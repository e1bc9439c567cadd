package image

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"hash/maphash"
	"iter"
	"path"
	"slices"

	"portcullis/internal/slab"
	"portcullis/verifier/verity"
)

// Tree is every name of a layer, in the order of their paths. There may be 200,000 of them, which
// as Files would take more memory than all else of who reads the image: so a name is an
// entry of a fixed size without a pointer, and its texts lie behind those of the others.
type Tree struct {
	text    slab.Text
	entries [][]entry         // of perPiece each: what is full is not copied into something larger
	first   map[uint64]uint32 // the newest entry, by what its path hashes to
	order   []uint32          // of the entries that are names, in the end
	implied int               // entries that are none
	seed    maphash.Seed
	budget  *budget
}

// entry is a File; or a directory that names lie in and that is no name itself so far, with the kind 0.
type entry struct {
	size             int64
	sum              verity.Sum
	text             slab.Ref // its path, what it leads to, its attributes
	path, link, mode uint16   // lengths
	kind             byte
	parent           bool // names lie in it
	uid, gid         uint32
	xattrs           uint32 // length
	next             uint32 // the entry before it with the same hash, and one more; 0 is none
}

const perPiece = 1024

func newTree(g *budget) *Tree {
	return &Tree{budget: g, first: map[uint64]uint32{}, seed: maphash.MakeSeed()}
}

func (t *Tree) entry(i uint32) *entry { return &t.entries[i/perPiece][i%perPiece] }

func (t *Tree) path(i uint32) []byte {
	e := t.entry(i)
	return t.text.At(e.text, 0, int(e.path))
}

func (t *Tree) file(i uint32) File {
	e := t.entry(i)
	text := string(t.text.At(e.text, 0, int(e.path)+int(e.link)+int(e.xattrs)))
	link := int(e.path) + int(e.link)
	return File{Path: text[:e.path], Kind: e.kind, Mode: uint32(e.mode), UID: int(e.uid), GID: int(e.gid), Size: e.size, Sum: e.sum, Link: text[e.path:link], Xattrs: text[link:]}
}

// Len is how many names there are.
func (t *Tree) Len() int { return len(t.order) }

// Files are all names, in the order of their paths.
func (t *Tree) Files() iter.Seq[File] {
	return func(yield func(File) bool) {
		for _, i := range t.order {
			if !yield(t.file(i)) {
				return
			}
		}
	}
}

// find looks for the entry of a path. A directory may be opaque and be there as well: opaque is to
// look for the one that says so.
func (t *Tree) find(p string, opaque bool) (uint32, bool) {
	for next := t.first[maphash.String(t.seed, p)]; next != 0; {
		i := next - 1
		e := t.entry(i)
		if (e.kind == KindOpaque) == opaque && string(t.path(i)) == p {
			return i, true
		}
		next = e.next
	}
	return 0, false
}

// put adds an entry.
func (t *Tree) put(p string, e entry) uint32 {
	last := len(t.entries) - 1
	if last < 0 || len(t.entries[last]) == perPiece {
		t.entries = append(t.entries, make([]entry, 0, perPiece))
		last++
	}
	i := uint32(last*perPiece + len(t.entries[last]))
	h := maphash.String(t.seed, p)
	e.path, e.next = uint16(len(p)), t.first[h]
	t.entries[last] = append(t.entries[last], e)
	t.first[h] = i + 1
	return i
}

// place puts a file in, if its name is free and lies in directories only.
func (t *Tree) place(f File) error {
	opaque := f.Kind == KindOpaque
	i, found := t.find(f.Path, opaque)
	if found && f.Kind != KindDir && !opaque && t.entry(i).parent {
		return refuse(ReasonLink, "%.100q is no directory, and names before it lie in it", f.Path)
	}
	if found && t.entry(i).kind != 0 {
		return refuse(ReasonDuplicate, "%.100q is there twice", f.Path)
	}
	if t.text.Bytes()+int64(len(f.Path)+len(f.Link)+len(f.Xattrs)) > t.budget.limits.Text {
		return refuse(ReasonTooLarge, "names of more than %d bytes in a layer", t.budget.limits.Text)
	}
	e := entry{size: f.Size, sum: f.Sum, text: t.text.Add(f.Path, f.Link, f.Xattrs), link: uint16(len(f.Link)), mode: uint16(f.Mode),
		kind: f.Kind, uid: uint32(f.UID), gid: uint32(f.GID), xattrs: uint32(len(f.Xattrs))}
	dir := path.Dir(f.Path)
	if opaque {
		dir = f.Path
	}
	if err := t.within(dir, e.text, f.Path); err != nil {
		return err
	}
	if found { // what was only implied has a name now
		was := t.entry(i)
		e.path, e.next, e.parent = was.path, was.next, was.parent
		*was = e
		t.implied--
	} else {
		i = t.put(f.Path, e)
	}
	t.order = append(t.order, i)
	notes := t.budget.notes
	switch {
	case notes != nil && f.Kind == KindLink:
		t.budget.note(&notes.links, &notes.lost, f.Path)
	case notes != nil:
		t.budget.note(&notes.others, &notes.over, f.Path)
	case f.Kind == KindLink:
		t.budget.links[sha256.Sum256([]byte(f.Path))] = true
	case len(t.budget.links) > 0:
		delete(t.budget.links, sha256.Sum256([]byte(f.Path)))
	}
	return nil
}

// within sees to it that dir and what it lies in are directories; text is that of a path which begins
// with theirs. One that names lie in already is, with all above it, and can be nothing else any more.
func (t *Tree) within(dir string, text slab.Ref, name string) error {
	for ; dir != "."; dir = path.Dir(dir) {
		i, ok := t.find(dir, false)
		if ok && t.entry(i).parent {
			return nil
		}
		if ok && t.entry(i).kind != KindDir || !ok && t.budget.links[sha256.Sum256([]byte(dir))] {
			return refuse(ReasonLink, "%.100q lies in %.100q, which is no directory", name, dir)
		}
		if !ok {
			if t.implied++; t.implied > t.budget.limits.Implied {
				return refuse(ReasonTooLarge, "more than %d directories in a layer that are not named", t.budget.limits.Implied)
			}
			i = t.put(dir, entry{text: text})
			if notes := t.budget.notes; notes != nil {
				t.budget.note(&notes.implied, &notes.over, dir)
			}
		}
		t.entry(i).parent = true
	}
	return nil
}

// done sorts the names.
func (t *Tree) done() *Tree {
	t.budget, t.first = nil, nil
	slices.SortFunc(t.order, func(a, b uint32) int {
		if c := bytes.Compare(t.path(a), t.path(b)); c != 0 {
			return c
		}
		return cmp.Compare(t.entry(a).kind, t.entry(b).kind)
	})
	return t
}
