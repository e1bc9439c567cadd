package expect

import (
	"io"
	"math/rand/v2"
	"slices"

	"portcullis/attestserver/protocol"
	"portcullis/images/modtext"
)

// What one question asks of the modules' text, at most.
const (
	askModules = 128 // modules, by chance where there are more
	askLayouts = 16  // of them, all addresses
	askPieces  = 60  // pieces of text that were not seen as they are now
	askAgain   = 4   // pieces that were, by chance
)

// modulesNote is what is known of the modules of a boot session. It is not changed.
type modulesNote struct {
	loaded   []string // live at the last answer, sorted; of the image's list
	modules  map[string]*moduleNote
	restless map[string]int // whose place is asked for again, and in how many answers yet
}

// moduleNote is what is known of one of them. It is not changed.
type moduleNote struct {
	sum    string         // of its text
	layout modtext.Layout // nil as long as it is not known
	was    modtext.Layout // the last one that was
	text   []span         // where the text is, by layout: that holds when the file is not open any more
	unseen modtext.Unseen
	seen   []bool   // pieces that were looked at while the sum was this one
	fixed  []uint64 // of each piece, 0 as long as it is not known (modtext.Result)
	left   int      // pieces that were not seen
	urgent bool     // its text was another one before
	gone   int      // answers in a row in which it could not be read
	moving int      // likewise, in which a site was being patched
	// unjudged counts the answers that left something of it unjudged, since all was seen.
	unjudged int
}

// span is a section of text at its addresses.
type span struct{ from, to uint64 }

func (n *moduleNote) last() modtext.Layout {
	if n.layout != nil {
		return n.layout
	}
	return n.was
}

func readModules(st *protocol.ImageState) *modulesNote {
	if n, ok := st.Kept[protocol.OpModules].(*modulesNote); ok {
		return n
	}
	return &modulesNote{}
}

// Params implements protocol.Expectation. The first question of a session asks for the
// list. The later ones ask for a sum of the text of each module, for the pieces of those
// that were not seen with that sum, and for some others; and for places that are not known
// or may be others by then.
func (e *Modules) Params(r io.Reader, st *protocol.ImageState) ([]byte, error) {
	note := readModules(st)
	if len(note.loaded) == 0 {
		return protocol.None, nil
	}
	seed, err := draw(r, 32)
	if err != nil {
		return nil, err
	}
	chance := rand.New(rand.NewChaCha8([32]byte(seed)))
	restless := note.draw(chance)
	names := slices.Clone(note.loaded)
	for name := range restless {
		if _, loaded := slices.BinarySearch(note.loaded, name); !loaded {
			names = append(names, name)
		}
	}
	slices.Sort(names) // a map has no order of its own, and the question is the seed's
	chance.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
	note.order(names, restless)
	q := question{budget: askPieces, again: askAgain, chance: chance, loaded: note.loaded, restless: restless}
	for _, name := range names {
		if m := e.text.ready(name); m != nil && len(q.Modules) < askModules {
			q.add(name, m, note.modules[name])
		}
	}
	if len(q.Modules) == 0 {
		return protocol.None, nil
	}
	return protocol.EncodeOp(q.ModulesParams)
}

// question is one that is being put together.
type question struct {
	protocol.ModulesParams
	layouts       int
	budget, again int
	chance        *rand.Rand
	loaded        []string
	restless      map[string]bool
}

func (q *question) add(name string, m *modtext.Module, note *moduleNote) {
	a := protocol.ModuleAsk{Name: name}
	parts := map[int]int{}
	for i, s := range m.Sections {
		if s.Text {
			parts[i] = len(a.Text)
			a.Text = append(a.Text, protocol.ModulePart{Name: s.Name, Size: s.Size})
		}
	}
	known := note != nil && note.layout != nil
	if len(a.Text) == 0 && known {
		a.Layout = true // no sum would tell that it lies elsewhere now
	}
	if (!known || q.restless[name]) && q.layouts < askLayouts {
		a.Layout = true
		q.layouts++
	}
	if _, loaded := slices.BinarySearch(q.loaded, name); loaded && (known || a.Layout) {
		for _, i := range q.pick(m, note) {
			section, offset, size := m.Piece(i)
			a.Pieces = append(a.Pieces, protocol.ModulePiece{Part: parts[section], Offset: offset, Size: size})
		}
	}
	q.Modules = append(q.Modules, a)
}

// pick draws pieces of a module, in their order.
func (q *question) pick(m *modtext.Module, note *moduleNote) (out []int) {
	for _, i := range q.chance.Perm(m.Pieces()) {
		seen := note != nil && len(note.seen) == m.Pieces() && note.seen[i]
		switch {
		case !seen && q.budget > 0:
			q.budget--
		case seen && q.again > 0 && q.chance.IntN(16) == 0:
			q.again--
		default:
			continue
		}
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}
