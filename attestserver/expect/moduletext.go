package expect

import (
	"cmp"
	"maps"
	"slices"

	"portcullis/attestserver/protocol"
	"portcullis/images/modlist"
	"portcullis/images/modtext"
)

const (
	// openAtOnce is how many module files one answer has opened.
	openAtOnce = 16
	// patience is how many answers in a row may not have read a module, or met it while
	// it was being patched.
	patience = 3
)

// textJudge judges the text in one answer.
type textJudge struct {
	*judge
	e      *Modules
	kernel *modtext.Exports
	live   map[string]bool
	note   *modulesNote // the new one
	again  int          // files that were opened for others
}

// judgeText judges what was read of the modules' text, and keeps what the next question
// needs to know.
func (e *Modules) judgeText(j *judge, in protocol.JudgeInput, d *protocol.ModulesData) {
	var asked protocol.ModulesParams
	if err := protocol.DecodeOp(in.Params, protocol.MaxParams, &asked); err != nil {
		j.unjudged(err) // what was asked is ours
		return
	}
	if !e.text.has() {
		return
	}
	t := &textJudge{judge: j, e: e, live: map[string]bool{}, note: &modulesNote{modules: maps.Clone(readModules(in.State).modules)}}
	if t.note.modules == nil {
		t.note.modules = map[string]*moduleNote{}
	}
	for _, m := range d.Modules {
		if name := modlist.Name(m.Name); m.State == "Live" && e.modules[name] != "" {
			t.live[name] = true
		}
	}
	t.note.loaded = slices.Sorted(maps.Keys(t.live))
	maps.DeleteFunc(t.note.modules, func(name string, _ *moduleNote) bool { return !t.live[name] })
	if t.open() && t.answer(asked.Modules, d) {
		t.rest(readModules(in.State))
		in.State.Keep(e.Name(), t.note)
	}
}

// open opens the files of modules that are loaded, some at a time.
func (t *textJudge) open() bool {
	var err error
	if t.kernel, err = t.e.text.exports(); err != nil {
		t.unjudged(err)
		return false
	}
	n := 0
	for _, name := range t.note.loaded {
		if n == openAtOnce {
			break
		}
		if t.e.text.ready(name) != nil {
			continue
		}
		if _, err := t.e.text.get(name); err != nil {
			t.unjudged(err)
		}
		n++
	}
	return true
}

// reading is one module of an answer.
type reading struct {
	ask  protocol.ModuleAsk
	file *modtext.Module
	note *moduleNote
	raw  [][]byte
}

func (t *textJudge) answer(asked []protocol.ModuleAsk, d *protocol.ModulesData) bool {
	if len(asked) != len(d.Text) {
		t.fatal(ReasonMalformed, "text of %d modules, asked for %d", len(d.Text), len(asked))
		return false
	}
	size := 0
	for i, a := range asked {
		if d.Text[i].Name != a.Name {
			t.fatal(ReasonMalformed, "text of %q, asked for %q", d.Text[i].Name, a.Name)
			return false
		}
		for _, p := range a.Pieces {
			if d.Text[i].Sum != "" {
				size += int(p.Size)
			}
		}
	}
	var raw []byte
	if size > 0 || len(d.Raw) > 0 {
		var err error
		if raw, err = unpackPieces(d.Raw, size); err != nil {
			t.fatal(ReasonMalformed, "%v", err)
			return false
		}
	}
	var read []reading
	for i, a := range asked {
		r := reading{ask: a}
		if d.Text[i].Sum == "" {
			t.vanished(a.Name)
			continue
		}
		for _, p := range a.Pieces {
			r.raw = append(r.raw, raw[:p.Size])
			raw = raw[p.Size:]
		}
		var err error
		if r.file, err = t.e.text.get(a.Name); err != nil {
			t.unjudged(err)
			continue
		}
		if t.live[a.Name] && t.place(&r, &d.Text[i]) {
			read = append(read, r)
		}
	}
	t.overlaps()
	for _, r := range read {
		t.pieces(r)
	}
	return true
}

// vanished counts the answers in which a module is loaded and could not be read.
func (t *textJudge) vanished(name string) {
	if !t.live[name] {
		return
	}
	n := new(moduleNote)
	if old := t.note.modules[name]; old != nil {
		*n = *old
	}
	n.gone++
	if t.note.modules[name] = n; n.gone >= patience {
		t.fatal(ReasonModuleUnread, "the text of %s could not be read %d times", name, n.gone)
	}
}

// place takes in the sum and the addresses of a module.
func (t *textJudge) place(r *reading, got *protocol.ModuleText) bool {
	n := &moduleNote{sum: got.Sum, seen: make([]bool, r.file.Pieces()), fixed: make([]uint64, r.file.Pieces()), left: r.file.Pieces()}
	if old := t.note.modules[r.ask.Name]; old != nil && old.sum != "" {
		if old.sum == got.Sum {
			*n = *old
			n.seen, n.fixed = slices.Clone(old.seen), slices.Clone(old.fixed)
		} else {
			// Another text, or other addresses. Until these are known again, the old ones hold:
			// a section moves only when the module is loaded anew.
			n.was, n.unseen, n.fixed, n.urgent, n.moving = old.last(), old.unseen, slices.Clone(old.fixed), true, old.moving
			n.unjudged = old.unjudged
		}
	}
	n.gone = 0
	r.note, t.note.modules[r.ask.Name] = n, n
	if !r.ask.Layout {
		if n.layout == nil {
			t.waits(r.ask.Name, n)
		}
		return n.layout != nil
	}
	by := map[string]uint64{}
	for _, s := range got.Layout {
		by[s.Name] = s.Address
	}
	layout := make(modtext.Layout, 0, len(r.file.Sections))
	for _, s := range r.file.Sections {
		a, ok := by[s.Name]
		if !ok {
			t.fatal(ReasonModulePlace, "%s has no section %s", r.ask.Name, s.Name)
			return false
		}
		layout = append(layout, a)
	}
	if err := r.file.CheckLayout(layout); err != nil {
		t.fatal(ReasonModulePlace, "%s: %v", r.ask.Name, err)
		return false
	}
	if was := n.last(); was != nil && !slices.Equal(was, layout) {
		n.unseen, n.fixed = nil, make([]uint64, len(n.fixed))
	}
	n.layout, n.was, n.text = layout, nil, nil
	for i, x := range r.file.Sections {
		if x.Text {
			n.text = append(n.text, span{layout[i], layout[i] + x.Size})
		}
	}
	return true
}

// overlaps looks for modules whose text lies on that of another one.
func (t *textJudge) overlaps() {
	type named struct {
		span
		name string
	}
	var all []named
	for name, n := range t.note.modules {
		for _, x := range n.text {
			all = append(all, named{x, name})
		}
	}
	slices.SortFunc(all, func(a, b named) int { return cmp.Compare(a.from, b.from) })
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; b.from < a.to {
			t.fatal(ReasonModulePlace, "%s at %#x lies on %s at %#x", b.name, b.from, a.name, a.from)
		}
	}
}

// pieces judges the pieces of a module that were sent.
func (t *textJudge) pieces(r reading) {
	n := r.note
	moving, unknown := false, false
	for i, p := range r.ask.Pieces {
		piece := r.index(p)
		if piece < 0 {
			continue
		}
		w := t.world(r)
		res := r.file.Check(w, piece, r.raw[i])
		switch {
		case res.Unknown:
			unknown = true
			continue
		case res.Odd != "":
			t.fatal(ReasonModuleText, "%s: %s+%#x %s", r.ask.Name, r.ask.Text[p.Part].Name, res.Offset, res.Odd)
			continue
		case n.fixed[piece] != 0 && n.fixed[piece] != res.Fixed:
			t.fatal(ReasonModuleText, "%s: %s+%#x: what the kernel patched when it loaded the module has changed", r.ask.Name, r.ask.Text[p.Part].Name, p.Offset)
			continue
		case res.Moving:
			moving = true
			continue
		}
		n.fixed[piece], n.unseen = res.Fixed, res.Unseen
		if !n.seen[piece] {
			n.seen[piece] = true
			n.left--
		}
	}
	switch {
	case n.left == 0:
		n.urgent, n.unjudged = false, 0
	case unknown:
		t.waits(r.ask.Name, n)
	}
	switch {
	case moving:
		if n.moving++; n.moving >= patience {
			t.fatal(ReasonModuleText, "%s: a breakpoint stays where the kernel patches", r.ask.Name)
		}
	case len(r.ask.Pieces) > 0:
		n.moving = 0
	}
}

// index is the number of a piece that was asked for.
func (r reading) index(p protocol.ModulePiece) int {
	for i := range r.file.Pieces() {
		section, offset, _ := r.file.Piece(i)
		if offset == p.Offset && r.file.Sections[section].Name == r.ask.Text[p.Part].Name {
			return i
		}
	}
	return -1
}

// world is what a module's text may refer to.
func (t *textJudge) world(r reading) modtext.World {
	inKernel := func(a uint64) bool { return a >= t.e.kernel.base && a-t.e.kernel.base < t.e.kernel.size }
	return modtext.World{Layout: r.note.layout, Kernel: t.kernel, Unseen: r.note.unseen, KernelText: inKernel,
		Export: func(name string) modtext.Symbol { return t.export(r.file, name) },
		Text:   func(a uint64) bool { return inKernel(a) || t.inModule(a) },
		Whole:  func() bool { return t.whole() }}
}

// export looks a symbol up in the modules on which one depends.
func (t *textJudge) export(m *modtext.Module, name string) (none modtext.Symbol) {
	for _, d := range m.Depends {
		if !t.live[d] {
			continue
		}
		n, file := t.note.modules[d], t.needed(d)
		if n == nil || n.layout == nil || file == nil {
			none.Later = true
			continue
		}
		if s, ok := file.Export(n.layout, name); ok {
			return s
		}
	}
	return none
}

// needed is a module that another one depends on. Some are opened again: where not all fit
// into memory, there would be one that is never open when it is needed.
func (t *textJudge) needed(name string) *modtext.Module {
	m := t.e.text.ready(name)
	if m == nil && t.again < openAtOnce {
		t.again++
		m, _ = t.e.text.get(name) // open tells why not
	}
	return m
}

// inModule tells whether an address is in the text of a module whose place is known.
func (t *textJudge) inModule(a uint64) bool {
	for _, n := range t.note.modules {
		for _, x := range n.text {
			if a >= x.from && a < x.to {
				return true
			}
		}
	}
	return false
}

// whole tells whether the places of all loaded modules are known.
func (t *textJudge) whole() bool {
	for name := range t.live {
		if n := t.note.modules[name]; n == nil || n.layout == nil {
			return false
		}
	}
	return true
}
