package fingerprint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"portcullis/attestserver/protocol"
)

// settle is how long after power-on a machine may still be finding its parts:
// disks, USB devices and network cards appear when user space loads their
// drivers, and the first question comes earlier.
const settle = 180 * time.Second

// Observation is what a machine showed in one answer.
type Observation struct {
	Machine string // MAC
	Session string
	Image   string // digest, hex
	Uptime  time.Duration
	Parts   []Part // of Parts
}

func (o *Observation) young() bool { return o.Uptime < settle }

// Result is what an observation means.
type Result struct {
	Changes  []Change // for review and fatal
	Learned  []Part   // found late in the first boot, and added
	Unstable []Part   // of a learnable class, and other than in an enrolling boot: no longer compared
	Boots    int      // that have enrolled the machine, this one included
	Waits    string   // root of the drift that waits for an operator; "" where none does
}

// Worst is the worst level among the changes, 0 where there are none.
func (r *Result) Worst() (worst Level) {
	for _, c := range r.Changes {
		worst = max(worst, c.Level)
	}
	return worst
}

// Enrol makes the record of a machine that has none. It refuses to replace one.
func Enrol(refs protocol.References, o Observation, random io.Reader) error {
	lock := writingOf(o.Machine)
	lock.Lock()
	defer lock.Unlock()
	if _, err := refs.Get(KindRecord, Key(o.Machine)); !errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonRecord, "a fingerprint of %s is there already", o.Machine)
	}
	r := &Record{Schema: 1, Machine: o.Machine, Generation: 1, Salt: make([]byte, SaltSize), Boots: []string{o.Session},
		Images: []string{o.Image}, Parts: slices.Clone(o.Parts)}
	if _, err := io.ReadFull(random, r.Salt); err != nil {
		return fmt.Errorf("fingerprint: random source: %w", err)
	}
	if err := saveFirst(refs, o.Machine, o.Session, o.Parts); err != nil {
		return err
	}
	return save(refs, r)
}

// Observe compares a machine with its record. In the enrolling boots it learns
// what may be learned; whatever else differs is a change, and the drift as a
// whole is put down for an operator. An error that is fs.ErrNotExist: the machine
// has no record.
func Observe(refs protocol.References, o Observation) (*Result, error) {
	lock := writingOf(o.Machine)
	lock.Lock()
	defer lock.Unlock()
	r, err := Load(refs, o.Machine)
	if err != nil {
		return nil, err
	}
	first, err := firstOf(refs, o.Machine, o.Session)
	if err != nil {
		return nil, err
	}
	if first == nil {
		if err := saveFirst(refs, o.Machine, o.Session, o.Parts); err != nil {
			return nil, err
		}
	}
	next := r.clone()
	res, dirty := next.weigh(o, first)
	if dirty {
		if err := save(refs, next); err != nil {
			return nil, err
		}
	}
	res.Boots = len(next.Boots)
	return res, next.wait(refs, o, res)
}

// weigh compares and learns. dirty tells whether r was changed.
func (r *Record) weigh(o Observation, first []Part) (res *Result, dirty bool) {
	res = &Result{}
	newImage := !slices.Contains(r.Images, o.Image)
	newBoot := !slices.Contains(r.Boots, o.Session)
	firstBoot := len(r.Boots) == 1 && !newBoot
	within := map[string]Change{}
	if first != nil {
		for _, c := range compare(first, early(o.Parts)) {
			if !measured[c.Class] && (c.Kind != Added || !late[c.Class]) {
				c.Level, c.Within = Fatal, true
				within[c.Class+"\x00"+c.Slot] = c
			}
		}
	}
	for _, c := range compare(r.Parts, o.Parts) {
		key := c.Class + "\x00" + c.Slot
		w, changedWithin := within[key]
		delete(within, key)
		part := Part{Class: c.Class, Slot: c.Slot, Value: c.Is}
		switch {
		case changedWithin:
			c.Level, c.Within = w.Level, true
		case c.Kind == Removed && late[c.Class] && o.young():
			continue
		case c.Kind == Added && late[c.Class] && o.young() && firstBoot:
			res.Learned = append(res.Learned, part)
			continue
		case learnable[c.Class] && !r.Complete() && newBoot:
			res.Unstable = append(res.Unstable, part)
			continue
		case newImage && drivers[c.Class]:
			c.Level = Review
		}
		res.Changes = append(res.Changes, c)
	}
	for _, c := range within { // what is again as it was enrolled, but was not when the session began
		if i := slices.IndexFunc(r.Parts, func(p Part) bool { return p.Class == c.Class && p.Slot == c.Slot }); i >= 0 && r.Parts[i].Unstable {
			continue
		}
		res.Changes = append(res.Changes, c)
	}
	if len(res.Changes) > 0 {
		res.Learned, res.Unstable = nil, nil // nothing is learned from a machine that has drifted
		return res, false
	}
	return res, r.learn(o, res, newBoot)
}

// learn takes what a machine without a drift may teach.
func (r *Record) learn(o Observation, res *Result, newBoot bool) (dirty bool) {
	r.Parts = append(r.Parts, res.Learned...)
	for _, u := range res.Unstable {
		u.Unstable = true
		if i := slices.IndexFunc(r.Parts, func(p Part) bool { return p.key() == u.key() }); i >= 0 {
			r.Parts[i].Unstable = true
		} else {
			r.Parts = append(r.Parts, u)
		}
	}
	dirty = len(res.Learned)+len(res.Unstable) > 0
	if newBoot && !r.Complete() {
		r.Boots, dirty = append(r.Boots, o.Session), true
	}
	// Other drivers find their parts late, so an image counts as seen late.
	if !o.young() && r.sawImage(o.Image) {
		dirty = true
	}
	return dirty
}

// wait puts the drift down for an operator, or takes back what has gone away.
func (r *Record) wait(refs protocol.References, o Observation, res *Result) error {
	old, err := LoadPending(refs, o.Machine)
	if err != nil {
		return err
	}
	if len(res.Changes) == 0 {
		// A drift of a session before, of a part that has not come up yet, is not
		// forgotten while the machine is young.
		if old != nil && !o.young() {
			return savePending(refs, o.Machine, &Pending{})
		}
		return nil
	}
	next := r.candidate(o, old)
	if err := next.seal(); err != nil {
		return err
	}
	res.Waits = next.Root
	if old != nil && old.Record.Root == next.Root && old.Record.Generation == next.Generation && slices.Equal(old.Changes, res.Changes) {
		return nil
	}
	return savePending(refs, o.Machine, &Pending{Record: next, Changes: res.Changes})
}

// candidate is the record as it would be if the drift was approved: what the
// machine shows, the unstable parts as before, and late parts that have not come
// up yet. Values that are measured stay as they were written down first, so that
// the root stands still.
func (r *Record) candidate(o Observation, old *Pending) *Record {
	next := r.clone()
	next.Generation, next.ApprovedBy = r.Generation+1, ""
	next.sawImage(o.Image)
	written := map[string]Part{}
	if old != nil {
		for _, p := range old.Record.Parts {
			written[p.key()] = p
		}
	}
	for _, p := range r.Parts { // what is enrolled goes before what waited
		if w, ok := written[p.key()]; !ok || same(p.Class, w.Value, p.Value) {
			written[p.key()] = p
		}
	}
	enrolled := map[string]Part{}
	for _, p := range r.Parts {
		enrolled[p.key()] = p
	}
	next.Parts = nil
	for _, p := range o.Parts {
		e, known := enrolled[p.key()]
		delete(enrolled, p.key())
		if w, ok := written[p.key()]; ok && same(p.Class, w.Value, p.Value) {
			p.Value = w.Value
		}
		p.Unstable = known && e.Unstable
		if p.Unstable {
			p.Value = e.Value
		}
		next.Parts = append(next.Parts, p)
	}
	for _, p := range enrolled {
		if p.Unstable || late[p.Class] && o.young() {
			next.Parts = append(next.Parts, p)
		}
	}
	return next
}
