package server

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"portcullis/attestserver/challenge"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
	"portcullis/internal/event"
)

// classKind is the reference that pins the CPU class of an image.
const classKind = "cpu-class"

// opinion is what the Expectations say of one answer.
type opinion struct {
	findings []protocol.Finding
	missing  []string                 // ops whose reference has to be taken first
	taken    []string                 // references that were taken from this answer
	full     bool                     // every op was judged
	tiers    map[string]protocol.Tier // shown by the ops that ask a root of trust
	warnings map[string][]string      // what stands beside the verdict from now on, by op
}

// judge has an accepted answer judged beside the core: it may take long, and
// news of a boot request must not wait for it.
func (c *core) judge(sent *challenge.Sent, a *challenge.Accepted, took time.Duration) {
	c.judging = true
	s, state := c.Server, c.state
	c.later(func() {
		o := weigh(newSeen(s.o.Refs), state, sent, a)
		s.work(func(c *core) { c.judged(state, sent, a, took, o) })
	})
}

// judged takes the opinion, unless a new session has begun meanwhile.
func (c *core) judged(state *protocol.ImageState, sent *challenge.Sent, a *challenge.Accepted, took time.Duration, o opinion) {
	c.judging = false
	if sent.Enrol {
		c.leave()
	}
	if sent.Enrol && dataOf(a) > largeAnswer {
		debug.FreeOSMemory() // tens of MiB, once per image
	}
	if state != c.state {
		return // the connection has ended with the session, and those who asked were told
	}
	now := c.o.Clock.Now()
	defer c.answerAsks(now, sent)
	sequence := sent.Message.Sequence
	slow, longest := slowest(a.Answers)
	times, timed := timesOf(sent, a, took, c.o.Deadline)
	limit := time.Duration(sent.Message.DeadlineMs) * time.Millisecond
	if timed {
		limit = c.limit(times)
	}
	c.o.Events.Emit("evidence", event.Fields{"session": state.Session, "sequence": sequence, "seconds": took.Seconds(),
		"limit_seconds": limit.Seconds(), "slowest": slow, "slowest_seconds": longest.Seconds()})
	for op, list := range o.warnings {
		c.machine.Stand(op, list)
	}
	for _, reference := range o.taken {
		c.machine.Warn("the reference of " + reference + " was taken on this boot")
		c.o.Events.Emit("enrol", event.Fields{"session": state.Session, "reference": reference, "class": state.CPUClass})
	}
	if failing(o.findings) {
		c.failed(now, sequence, o.findings)
		return
	}
	written := c.notes.fresh(state, a.Answers, o.findings)
	if written {
		c.note(now, sequence, o.findings...)
	} else {
		c.tell(now, sequence, o.findings)
	}
	if timed && len(o.missing) == 0 {
		found, repeated := c.paced(now, times, limit)
		if repeated && c.machine.State() == verdict.Trusted {
			c.doubtful(now, sequence, found, a.Head)
			return
		}
		for i := range found {
			found[i].Class = protocol.Info
		}
		c.note(now, sequence, found...)
	}
	c.enrol = o.missing
	for op, tier := range o.tiers {
		c.machine.Raise(op, tier)
	}
	switch {
	case len(o.missing) > 0:
		c.machine.Recorded(a.Head)
		c.changed(now, sequence, c.machine.Enrolling())
	case sent.Enrol:
		c.machine.Recorded(a.Head)
	default:
		change := c.machine.Passed(now, o.full, a.Head)
		if written || change == nil || change.From == change.To {
			o.findings = nil
		}
		c.changedWith(now, sequence, change, o.findings)
	}
	c.plan(now)
}

// largeAnswer is how many bytes of data make an answer one whose memory is given
// back at once. It costs a whole round of the garbage collector, which a rack of PCs
// that enrol a few hundred bytes each would pay a thousand times.
const largeAnswer = 1 << 20

func dataOf(a *challenge.Accepted) (n int) {
	for _, x := range a.Answers {
		n += len(x.Output.Data)
	}
	return n
}

// slowest names the op that took longest on the PC, as its clock has it.
func slowest(answers []challenge.Answer) (name string, d time.Duration) {
	for _, a := range answers {
		if a.Elapsed >= d {
			name, d = a.Name(), a.Elapsed
		}
	}
	return name, d
}

// weigh asks the Expectations. It runs outside of the core's turns and
// touches only what it is given.
func weigh(refs References, st *protocol.ImageState, sent *challenge.Sent, a *challenge.Accepted) opinion {
	o := opinion{}
	for _, answer := range a.Answers {
		if answer.Error == "" {
			o.classify(refs, st, answer)
		}
	}
	for _, answer := range a.Answers {
		if !answer.Enrol {
			o.op(refs, st, answer)
		}
	}
	for _, answer := range a.Answers {
		if answer.Enrol {
			o.enrol(refs, st, answer)
		}
	}
	for _, answer := range a.Answers {
		o.warn(refs, st, answer)
	}
	o.full = sent.Full && len(o.missing) == 0
	if o.full && !failing(o.findings) {
		o.pinClass(refs, st)
	}
	o.settle(refs, st, a.Answers)
	o.findings = fold(o.findings)
	for i := range o.findings {
		o.findings[i] = bounded(o.findings[i])
	}
	return o
}

func (o *opinion) op(refs References, st *protocol.ImageState, a challenge.Answer) {
	if a.Error != "" {
		o.add(finding(a.Name(), protocol.ProbeError, protocol.Fatal, a.Error))
		return
	}
	in := protocol.JudgeInput{Key: a.Key, Params: a.Params, Output: a.Output, Elapsed: a.Elapsed, State: st, Refs: refs}
	defer o.survive(a.Name())
	if e, ok := a.Expectation.(protocol.Enroller); ok {
		there, err := e.Enrolled(st, refs)
		if err != nil {
			o.add(finding(a.Name(), protocol.ProbeUnjudged, protocol.Soft, err.Error()))
			return
		}
		if !there {
			o.missing = append(o.missing, a.Name())
			return
		}
	}
	o.add(a.Judge(in)...)
}

// warn asks an Expectation for what stands beside the verdict.
func (o *opinion) warn(refs References, st *protocol.ImageState, a challenge.Answer) {
	w, ok := a.Expectation.(protocol.Warner)
	if !ok {
		return
	}
	defer o.survive(a.Name())
	if o.warnings == nil {
		o.warnings = make(map[string][]string)
	}
	o.warnings[a.Name()] = warningsOf(w, refs, st) // where there are none, those of before are over
}

// enrol has a reference taken, unless anything else in the same answer is wrong:
// what a PC is held against later must not come from one that has failed.
func (o *opinion) enrol(refs References, st *protocol.ImageState, a challenge.Answer) {
	if failing(o.findings) {
		o.missing = append(o.missing, a.Name())
		return
	}
	if a.Error != "" {
		o.add(finding(a.Name(), protocol.ProbeError, protocol.Fatal, a.Error))
		return
	}
	defer o.survive(a.Name())
	e := a.Expectation.(protocol.Enroller)
	there, err := e.Enrolled(st, refs)
	switch {
	case err != nil:
		o.add(finding(a.Name(), protocol.ProbeUnjudged, protocol.Soft, err.Error()))
		return
	case there:
		return // attestd ended between taking it and pinning the class
	}
	found := e.Enrol(protocol.JudgeInput{Key: a.Key, Params: a.Params, Output: a.Output, Elapsed: a.Elapsed, State: st, Refs: refs})
	o.add(found...)
	if !failing(found) {
		o.taken = append(o.taken, a.Name())
	}
}

// settle lets what holds a PC to a root of trust keep what it has learned and say
// what that shows, where nothing in the whole answer is wrong.
func (o *opinion) settle(refs References, st *protocol.ImageState, answers []challenge.Answer) {
	for _, a := range answers {
		r, ok := a.Expectation.(protocol.Rooted)
		if !ok || failing(o.findings) {
			continue
		}
		func() {
			defer o.survive(a.Name())
			tier, taken, err := r.Settle(st, refs)
			if err != nil {
				o.add(finding(a.Name(), protocol.ProbeUnjudged, protocol.Soft, err.Error()))
				return
			}
			if taken {
				o.taken = append(o.taken, a.Name())
			}
			if o.tiers == nil {
				o.tiers = make(map[string]protocol.Tier)
			}
			o.tiers[a.Name()] = tier
		}()
	}
}

// survive is deferred around every Expectation: an answer of a hostile machine
// that makes one panic is a finding, and not the end of attestd.
func (o *opinion) survive(probe string) {
	if r := recover(); r != nil {
		o.add(finding(probe, protocol.ProbeUnjudged, protocol.Fatal, fmt.Sprintf("the judgement panicked: %v", r)))
	}
}

// enrollers names the ops that take references.
func enrollers(image *openImage) (names []string) {
	for _, e := range image.expectations {
		if _, ok := e.(protocol.Enroller); ok {
			names = append(names, e.Name())
		}
	}
	return names
}

// pinned tells whether a CPU class is pinned for the image. An error counts as
// yes: the judgement will meet it again and report it.
func pinned(refs References, st *protocol.ImageState) bool {
	_, err := refs.Get(classKind, imageKey(st))
	return !errors.Is(err, fs.ErrNotExist)
}

// classify reads the CPU class from the op that names it, and holds it against
// the one of this session and the one pinned for this image.
func (o *opinion) classify(refs References, st *protocol.ImageState, a challenge.Answer) {
	k, ok := a.Expectation.(protocol.Classifier)
	if !ok {
		return
	}
	defer o.survive(a.Name())
	class, err := k.CPUClass(a.Output)
	if err != nil {
		o.add(finding(a.Name(), protocol.CPUClassInvalid, protocol.Fatal, err.Error()))
		return
	}
	was := st.CPUClass
	if was == "" {
		pinned, err := refs.Get(classKind, imageKey(st))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			o.add(finding(a.Name(), protocol.ProbeUnjudged, protocol.Soft, err.Error()))
			return
		}
		was = string(pinned)
	}
	if was != "" && was != class && (st.CPUClass != "" || !onlyMicrocode(was, class)) {
		o.add(finding(a.Name(), protocol.CPUClassChanged, protocol.Fatal, fmt.Sprintf("%s, enrolled for this image is %s", class, was)))
		return
	}
	st.CPUClass = class
}

// onlyMicrocode tells whether two CPU classes name one CPU with different
// microcode, which also brings feature words and takes them away. Between boots
// that is for the fingerprint to judge; kernel text is enrolled anew for it, held
// against the signed kernel. A CPU class ends with microcode, features, mode.
func onlyMicrocode(a, b string) bool {
	x, y := strings.Split(a, "-"), strings.Split(b, "-")
	n := len(x)
	return n == len(y) && n >= 5 && x[n-3] != y[n-3] && x[n-1] == y[n-1] && slices.Equal(x[:n-3], y[:n-3])
}

// pinClass pins the class on the first boot of an image that passed in full.
func (o *opinion) pinClass(refs References, st *protocol.ImageState) {
	if st.CPUClass == "" {
		return
	}
	_, err := refs.Get(classKind, imageKey(st))
	if errors.Is(err, fs.ErrNotExist) {
		if err = refs.PutNew(classKind, imageKey(st), []byte(st.CPUClass)); err == nil {
			o.taken = append(o.taken, classKind)
		}
	}
	if err != nil {
		o.add(finding("", protocol.ProbeUnjudged, protocol.Soft, err.Error()))
	}
}

func imageKey(st *protocol.ImageState) string { return fmt.Sprintf("%x", st.Image.Digest[:16]) }

func (o *opinion) add(f ...protocol.Finding) { o.findings = append(o.findings, f...) }
