package session

import (
	"time"

	"portcullis/internal/event"
	"portcullis/pxe/artefact"
)

// Allow returns the image to serve name of session id from, or a *Refusal.
func (m *Manager) Allow(id, name string) (*artefact.Image, Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if reason := m.closed(id); reason != "" {
		return nil, Session{}, &Refusal{Reason: reason}
	}
	if !m.current.Firmware.Offers(name) {
		return nil, Session{}, &Refusal{Reason: ReasonNotOffered}
	}
	return m.current.image, m.current.copy(), nil
}

// closed returns why nothing is served for session id now, or "". The caller holds mu.
func (m *Manager) closed(id string) string {
	e := m.current
	switch {
	case e == nil || e.ID != id:
		if m.past[id] {
			return ReasonSuperseded
		}
		return ReasonUnknown
	case e.State == Void:
		return ReasonVoid
	case e.State == Ended:
		return ReasonSuperseded
	case !e.Live() || e.claiming:
		return ReasonClosed
	case e.image == nil:
		return ReasonUnknown
	}
	return ""
}

// Sent notes that bytes [offset, offset+length) of name left. It returns a
// *Refusal when nothing more may follow for this session.
func (m *Manager) Sent(id, name, transport string, offset, length int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if reason := m.closed(id); reason != "" {
		return &Refusal{Reason: reason}
	}
	before := m.current.progress(name)
	m.current.cover(name, transport, offset, length, m.cfg.Clock.Now())
	m.tell(before, m.current.progress(name))
	m.advance(m.current)
	if m.current.sent += length; m.current.sent > m.current.quota() {
		m.void(m.current, VoidQuota)
		return &Refusal{Reason: VoidQuota}
	}
	return nil
}

// quota is how many bytes the session may be sent in all.
func (e *entry) quota() int64 {
	n := int64(1 << 20) // scripts
	for _, p := range e.Artefacts {
		n += p.Size * maxServed
	}
	return n
}

// progress returns how far name is, the zero value where this way does not count it.
func (e *entry) progress(name string) Progress {
	for _, p := range e.Artefacts {
		if p.Name == name {
			return p
		}
	}
	return Progress{}
}

// tell reports the first and the last byte of an artefact, however many
// requests it took. The caller holds mu.
func (m *Manager) tell(before, after Progress) {
	f := event.Fields{"session": m.current.ID, "artefact": after.Name, "transport": after.Transport}
	if before.Covered == 0 && after.Covered > 0 {
		m.cfg.Events.Emit("artefact.started", f)
	}
	if before.Covered < after.Size && after.Covered == after.Size {
		f["bytes"], f["seconds"] = after.Size, m.cfg.Clock.Now().Sub(after.started).Seconds()
		m.cfg.Events.Emit("artefact.served", f)
	}
}

// cover notes bytes that were sent at the time t.
func (e *entry) cover(name, transport string, offset, length int64, t time.Time) {
	for i := range e.Artefacts {
		p := &e.Artefacts[i]
		if p.Name != name || length <= 0 {
			continue
		}
		c := e.covers[name]
		if c == nil {
			c = new(cover)
			e.covers[name] = c
		}
		if p.started.IsZero() {
			p.started = t
		}
		c.add(offset, min(offset+length, p.Size))
		p.Covered, p.Transport = c.total(), transport
		e.LastByte = t
		for _, boot := range e.Firmware.boot() {
			if name == boot {
				e.BootByte = t
			}
		}
	}
}

// complete tells whether every mandatory artefact is covered.
func (e *entry) complete() bool {
	left := len(e.Firmware.Mandatory())
	for _, name := range e.Firmware.Mandatory() {
		for _, p := range e.Artefacts {
			if p.Name == name && p.Size > 0 && p.Covered == p.Size {
				left--
			}
		}
	}
	return left == 0
}

// advance moves a live session on after bytes were sent. The caller holds mu.
func (m *Manager) advance(e *entry) {
	next := Fetching
	if e.LastByte.IsZero() {
		next = Offered
	} else if e.complete() {
		next = Served
	}
	if !e.Live() || next == e.State {
		return
	}
	e.State = next
	m.recordOrReport(e)
	if next == Served {
		m.cfg.Events.Emit("session.served", event.Fields{
			"session": e.ID, "seconds": m.cfg.Clock.Now().Sub(e.Opened).Seconds(),
		})
	}
	m.publish(e)
}
