package server

import (
	"errors"
	"io/fs"
	"time"

	"portcullis/attestserver/challenge"
	"portcullis/attestserver/deadline"
	"portcullis/attestserver/protocol"
	"portcullis/internal/event"
)

// paceKind is the reference with what was learned of an image on a CPU class.
const paceKind = "deadline"

// paceEvery is how many answers are learned between two times that the model is
// written down. What is lost in between is learned again.
const paceEvery = 4 * deadline.Enough

// pace is how long answers take. The core owns it.
type pace struct {
	key   string // image × CPU class
	model *deadline.Model
	watch deadline.Watch
}

// follow opens the model of the image and CPU class that are judged.
func (p *pace) follow(c *core) {
	key := protocol.ReferenceKey(c.state)
	if p.model != nil && p.key == key {
		return
	}
	p.key, p.model = key, &deadline.Model{}
	b, err := c.o.Refs.Get(paceKind, key)
	if err == nil {
		var m *deadline.Model
		if m, err = deadline.Decode(b); err == nil {
			p.model = m
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Until it is learned anew the ceiling holds, as on the first boot.
		c.o.Events.Emit("deadline.unreadable", event.Fields{"session": c.machine.Session(), "detail": err.Error()})
	}
}

// limit is how long an answer to what was sent may take by what was learned.
func (c *core) limit(a deadline.Answer) time.Duration {
	c.pace.follow(c)
	return c.pace.model.Limit(a.Ops, c.o.Deadline)
}

// paced weighs the time of a good answer and learns from it. repeated: the PC has
// been slow for so long that it is a suspect.
func (c *core) paced(now time.Time, a deadline.Answer, limit time.Duration) (f []protocol.Finding, repeated bool) {
	p := &c.pace
	switch p.watch.See(now, a.Took, limit) {
	case deadline.Slow:
		f = slowness(a.Took, limit, protocol.Info, "")
	case deadline.Repeated:
		f = slowness(a.Took, limit, protocol.Soft, ", as did those before")
		repeated = true
	}
	p.model.Learn(a, c.o.Deadline)
	if n := p.model.Count; n == deadline.Enough || n%paceEvery == 0 {
		c.keepPace()
	}
	return f, repeated
}

func slowness(took, limit time.Duration, class protocol.Class, more string) []protocol.Finding {
	return []protocol.Finding{finding("", protocol.EvidenceSlow, class, "the answer took "+took.Round(time.Millisecond).String()+
		", learned is at most "+limit.Round(time.Millisecond).String()+more)}
}

// keepPace writes the model down, beside the core: a disk may be slow.
func (c *core) keepPace() {
	b, err := c.pace.model.Encode()
	if err != nil {
		return // its numbers are finite, so there is none
	}
	refs, key, events, session := c.o.Refs, c.pace.key, c.o.Events, c.machine.Session()
	go func() {
		if err := refs.Put(paceKind, key, b); err != nil {
			events.Emit("deadline.unwritten", event.Fields{"session": session, "detail": err.Error()})
		}
	}()
}

// timesOf is what the model learns from. The answer to a challenge that must have
// every probe, or takes references, has a longer ceiling, comes while the PC is
// booting, and teaches nothing.
func timesOf(sent *challenge.Sent, a *challenge.Accepted, took, ceiling time.Duration) (t deadline.Answer, ok bool) {
	if time.Duration(sent.Message.DeadlineMs)*time.Millisecond > ceiling {
		return t, false
	}
	t = deadline.Answer{Took: took, Ops: make(map[string]time.Duration, len(a.Answers))}
	for _, x := range a.Answers {
		t.Ops[x.Name()] = x.Elapsed
	}
	return t, true
}
