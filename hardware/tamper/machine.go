package tamper

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"portcullis/hardware"
	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/journal"
)

// Hands do what the machine decides. Each must be safe to call again after it was
// called, or was interrupted, before.
type Hands interface {
	// DropPC puts the gateway into quarantine.
	DropPC(ctx context.Context) error
	// Cap closes the chip's policy until the next power cycle.
	Cap(ctx context.Context) error
	// Forget makes the chip forget the disk's key.
	Forget(ctx context.Context) error
	// Erase erases the disk's keyslots.
	Erase(ctx context.Context) error
}

// Events that the machine writes.
const (
	EventSeen    = "tamper.seen"    // a detector saw something
	EventStep    = "tamper.step"    // a step of the reaction was done or failed
	EventJournal = "tamper.journal" // the journal cannot be written; the policy goes on without
)

const (
	// retryPause is how long a failed step waits before it is tried again.
	retryPause = 5 * time.Second
	// stepTimeout bounds one try.
	stepTimeout = 30 * time.Second
	// mergeWithin is how soon a second event of a source is the same event.
	mergeWithin = time.Second
	// maxKnown caps the sources that are remembered for merging.
	maxKnown = 64
)

// Machine reacts to events. Run owns it; its methods are not safe for concurrent use.
type Machine struct {
	policy Policy
	hands  Hands
	log    *event.Writer
	clock  clock.Clock
	j      *journal.Journal
	open   []*incident // begun and not ended, the oldest first
	next   uint64
	last   map[string]time.Time // source → its last event
}

// record is one line of the journal.
type record struct {
	Version  int              `json:"version"`
	Incident uint64           `json:"incident"`
	What     string           `json:"what"` // seen, begin, done, failed, end
	Tamper   *hardware.Tamper `json:"tamper,omitempty"`
	Action   Action           `json:"action,omitempty"`
	Step     step             `json:"step,omitempty"`
	Error    string           `json:"error,omitempty"`
}

// Journal entries.
const (
	whatSeen   = "seen"
	whatBegin  = "begin"
	whatDone   = "done"
	whatFailed = "failed"
	whatEnd    = "end"
)

type incident struct {
	id     uint64
	source string
	action Action // as decided when it was seen
	done   map[step]bool
	told   map[step]string // what was written of a step in this life: begun, or why it failed
}

// Open reads the journal at path and finds what an earlier process left unfinished.
func Open(path string, p Policy, h Hands, log *event.Writer, c clock.Clock) (*Machine, error) {
	m := &Machine{policy: p, hands: h, log: log, clock: c, next: 1, last: map[string]time.Time{}}
	j, _, err := journal.Open(path, func(r journal.Record) error {
		rec, err := parseRecord(r.Payload)
		if err != nil {
			return err
		}
		m.replay(rec)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tamper journal: %w", err)
	}
	m.j = j
	return m, nil
}

func parseRecord(b []byte) (record, error) {
	var r record
	if err := hardware.DecodeStrict(b, &r); err != nil {
		return r, err
	}
	if r.Version != 1 {
		return r, fmt.Errorf("version %d is not 1", r.Version)
	}
	return r, nil
}

func (m *Machine) replay(r record) {
	if r.What == whatSeen {
		i := &incident{id: r.Incident, action: r.Action, done: map[step]bool{}, told: map[step]string{}}
		if r.Tamper != nil {
			i.source = r.Tamper.Source
		}
		m.open = append(m.open, i)
		m.next = max(m.next, r.Incident+1)
		return
	}
	for n, i := range m.open {
		if i.id != r.Incident {
			continue
		}
		switch r.What {
		case whatDone:
			i.done[r.Step] = true
		case whatEnd:
			m.open = append(m.open[:n:n], m.open[n+1:]...)
		}
		return
	}
}

// Close closes the journal.
func (m *Machine) Close() error { return m.j.Close() }

// Unfinished is the number of incidents that are not ended.
func (m *Machine) Unfinished() int { return len(m.open) }

// Run first ends what was left unfinished, then reacts to events until ctx ends or the
// channel closes. It ends for no other reason: a journal that cannot be written (a
// full disk) is told and does not disarm the policy.
func (m *Machine) Run(ctx context.Context, events <-chan hardware.Tamper) error {
	for {
		m.Finish(ctx)
		select {
		case t, ok := <-events:
			if !ok {
				return nil
			}
			m.Seen(t)
		case <-m.retry():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// retry wakes Run where a step is still to be done.
func (m *Machine) retry() <-chan time.Time {
	if len(m.open) == 0 {
		return nil
	}
	return m.clock.After(retryPause)
}

// Seen writes down an event with the action that the policy has for it. An event that
// adds nothing to one just before it, or to one that is still being worked on, is
// not written again: a switch that is played with cannot fill the disk.
func (m *Machine) Seen(t hardware.Tamper) {
	t.Source, t.Detail = t.Source[:min(len(t.Source), 64)], t.Detail[:min(len(t.Detail), 256)]
	now := m.clock.Now()
	last, known := m.last[t.Source]
	if len(m.last) >= maxKnown {
		clear(m.last)
	}
	m.last[t.Source] = now
	if known && now.Sub(last) < mergeWithin {
		return
	}
	a := m.policy.Action(t.Source)
	for _, i := range m.open {
		if i.source == t.Source && i.action == a {
			return
		}
	}
	i := &incident{id: m.next, source: t.Source, action: a, done: map[step]bool{}, told: map[step]string{}}
	m.next++
	m.open = append(m.open, i)
	m.log.Emit(EventSeen, event.Fields{"source_name": t.Source, "detail": t.Detail, "action": string(a)})
	m.write(record{Incident: i.id, What: whatSeen, Tamper: &t, Action: a})
}

// Finish does every step that is due once. Steps that fail stay due.
func (m *Machine) Finish(ctx context.Context) {
	var left []*incident
	for _, i := range m.open {
		if !m.react(ctx, i) {
			left = append(left, i)
			continue
		}
		m.write(record{Incident: i.id, What: whatEnd})
	}
	m.open = left
}

// react does the steps of an incident: those of the action that was decided when it was
// seen, or of the milder one where the operator has opted out since.
func (m *Machine) react(ctx context.Context, i *incident) (whole bool) {
	action := i.action
	if now := m.policy.Action(i.source); rank(now) < rank(action) {
		action = now
	}
	whole = true
	for _, s := range steps(action) {
		if i.done[s] {
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		if _, told := i.told[s]; !told {
			i.told[s] = whatBegin
			m.write(record{Incident: i.id, What: whatBegin, Action: action, Step: s})
		}
		if err := m.do(ctx, s); err != nil {
			whole = false
			text := err.Error()
			m.tell(i, s, record{Incident: i.id, What: whatFailed, Action: action, Step: s, Error: text[:min(len(text), 512)]})
			continue
		}
		i.done[s] = true
		m.tell(i, s, record{Incident: i.id, What: whatDone, Action: action, Step: s})
	}
	return whole
}

// tell writes the outcome of a step, once for each kind of failure.
func (m *Machine) tell(i *incident, s step, r record) {
	if i.told[s] == r.What+r.Error {
		return
	}
	i.told[s] = r.What + r.Error
	m.log.Emit(EventStep, event.Fields{"step": string(s), "result": r.What, "error": r.Error})
	m.write(r)
}

func (m *Machine) do(ctx context.Context, s step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	switch s {
	case stepDropPC:
		return m.hands.DropPC(ctx)
	case stepCap:
		return m.hands.Cap(ctx)
	case stepForget:
		err := m.hands.Forget(ctx)
		// A chip that cannot forget leaves it to erasing.
		if err != nil && hardware.ReasonOf(err) == hardware.ReasonUnsupported {
			return nil
		}
		return err
	case stepErase:
		return m.hands.Erase(ctx)
	}
	return fmt.Errorf("step %q is not known", s)
}

// write appends a record and waits until it is on the disk.
func (m *Machine) write(r record) {
	r.Version = 1
	b, err := json.Marshal(r)
	if err == nil {
		_, err = m.j.Append(b)
	}
	if err == nil {
		err = m.j.Sync()
	}
	if err != nil {
		m.log.Emit(EventJournal, event.Fields{"error": err.Error()})
	}
}
