package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"

	"portcullis/verifier/approval"
)

// Most archives say in the end only what is in them. So what may be a layer is read when it
// comes, before it is known whether it is one, under which digest and above which others. What
// was found is kept by where it lies, and decides nothing: when the image is known, its
// layers are gone through in their order, and where the same would have been found by reading
// now, it is taken. Everything else is read again, whatever is wrong with it: the refusal
// is the one that it would be without this.

// contents is what a layer was found to be, read without the others.
type contents struct {
	packing  packing
	digest   string
	diffID   string
	size     int64 // packed
	unpacked int64
	entries  int
	sparse   bool  // at some place more was unpacked than Limits.Ratio for what was read
	tree     *Tree // nil where Options.Layer had it

	notes notes
}

// pathSum is the digest of a path.
type pathSum = [sha256.Size]byte

// notes is how a layer's names depend on the symbolic links of the layers below, and what they leave of
// them (Tree.place, Tree.within).
type notes struct {
	links   []pathSum // its own
	others  []pathSum // names that are none: such a link is gone
	implied []pathSum // directories that had no name yet when a name in them came: no such link may lie there
	lost    bool      // there are more links
	over    bool      // there is more of the rest
}

// maxNoted is how many paths are noted of all layers; 2 MiB.
const maxNoted = 1 << 16

// early reads layers while their archive comes in.
type early struct {
	ctx    context.Context
	o      Options
	limits Limits              // what is left of them
	room   int                 // in notes
	known  map[int64]*contents // by where it begins
}

func newEarly(ctx context.Context, o Options) *early {
	return &early{ctx: ctx, o: o, limits: o.Limits.filled(), room: maxNoted, known: map[int64]*contents{}}
}

// member looks at a file of the archive of which no more than its header may be there.
func (e *early) member(s *tarSource, m member) {
	if len(e.known) < approval.MaxLayers && looksPacked(io.NewSectionReader(s.file, m.at, m.size)) {
		e.read(s, m)
	}
}

// looksPacked tells whether a file begins as the layers do that are worth it: an empty one, for
// example, does not, and can as well be read in the end.
func looksPacked(r io.Reader) bool {
	const magicAt = 257
	var b [magicAt + 5]byte
	n, _ := io.ReadFull(r, b[:])
	head := b[:n]
	return bytes.HasPrefix(head, gzipMagic) || bytes.HasPrefix(head, zstdMagic) || n == len(b) && string(head[magicAt:]) == "ustar"
}

// read reads what may be a layer. All of them together have the limits of one image.
func (e *early) read(s *tarSource, m member) {
	g := &budget{limits: e.limits, notes: &notes{}, room: e.room}
	b := &blob{io.NewSectionReader(s.file, m.at, m.size), m.size, nil, m.at}
	c, err := readContents(e.ctx, b, packedAny, g)
	e.limits.Unpacked -= g.unpacked
	e.limits.Entries -= g.entries
	if err != nil {
		return
	}
	if e.o.Layer != nil {
		l := Layer{Digest: c.digest, DiffID: c.diffID, Size: c.size, Unpacked: c.unpacked, MediaType: mediaTypes[c.packing], Tree: c.tree}
		if c.tree = nil; e.o.Layer(&l) != nil {
			return
		}
	}
	c.notes, e.room = *g.notes, g.room
	e.known[m.at] = c
}

// note notes a path, if there is room.
func (g *budget) note(to *[]pathSum, less *bool, p string) {
	if g.room == 0 {
		*less = true
		return
	}
	g.room--
	*to = append(*to, sha256.Sum256([]byte(p)))
}

// fits tells whether reading the layer now, above those that g knows, would find the same.
func (c *contents) fits(named packing, g *budget) bool {
	switch {
	case named != packedAny && named != c.packing,
		c.unpacked > g.limits.Unpacked-g.unpacked,
		c.entries > g.limits.Entries-g.entries,
		c.sparse || g.sparse,
		c.notes.lost,
		len(g.links) > 0 && c.notes.over:
		return false
	}
	for _, dir := range c.notes.implied {
		if g.links[dir] {
			return false
		}
	}
	return true
}

// take adds the layer to what g knows.
func (g *budget) take(c *contents) {
	g.unpacked += c.unpacked
	g.entries += c.entries
	if len(g.links) > 0 {
		for _, p := range c.notes.others {
			delete(g.links, p)
		}
	}
	for _, p := range c.notes.links {
		g.links[p] = true
	}
	g.read(c.size)
}
