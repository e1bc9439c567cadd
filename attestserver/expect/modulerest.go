package expect

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"

	"portcullis/attestserver/protocol"
)

// A call from one module into another can be judged only where the places of all modules
// are known, and a module that was loaded or changed since the last answer has none. Of
// those that do this often the place is asked for with every question, also of one that
// is not loaded at the moment: else two of them that take turns would leave the calls of
// all others unjudged for ever.
const (
	askRestless = 8  // of them in one question, by chance
	restlessFor = 32 // answers after the last change
	// unjudgedAfter is how many answers may leave text of a module unjudged, and
	// unjudgedEach how many modules that are loaded allow for one more: the places of
	// askLayouts of them come in one answer.
	unjudgedAfter = 16
	unjudgedEach  = 4
)

// draw picks the modules whose place is asked for again.
func (n *modulesNote) draw(chance *rand.Rand) map[string]bool {
	names := slices.Sorted(maps.Keys(n.restless))
	chance.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
	out := map[string]bool{}
	for _, name := range names[:min(len(names), askRestless)] {
		out[name] = true
	}
	return out
}

// order puts restless modules first, then those whose text has changed.
func (n *modulesNote) order(names []string, restless map[string]bool) {
	rank := func(name string) int {
		m := n.modules[name]
		switch {
		case restless[name]:
			return 0
		case m != nil && m.urgent:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
}

// rest notes which modules were loaded or have changed since the last answer.
func (t *textJudge) rest(was *modulesNote) {
	t.note.restless = map[string]int{}
	for name, n := range was.restless {
		if n > 1 {
			t.note.restless[name] = n - 1
		}
	}
	if len(was.loaded) == 0 {
		return // the first answer: all are new
	}
	for _, name := range t.note.loaded {
		_, before := slices.BinarySearch(was.loaded, name)
		old, now := was.modules[name], t.note.modules[name]
		if !before || old != nil && old.sum != "" && (now == nil || now.sum != old.sum) {
			t.note.restless[name] = restlessFor
		}
	}
}

// waits counts an answer that has left text of a module unjudged.
func (t *textJudge) waits(name string, n *moduleNote) {
	limit := unjudgedAfter + len(t.live)/unjudgedEach
	if n.unjudged = min(n.unjudged+1, limit); n.unjudged == limit {
		t.add(protocol.Info, ReasonModuleUnjudged, "text of %s cannot be judged as long as modules keep changing: their places are not known", name)
	}
}
