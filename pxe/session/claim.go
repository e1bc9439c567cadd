package session

import (
	"context"
	"crypto/ed25519"
	"time"

	"portcullis/internal/event"
)

// Claim says: I am the boot of this session, and this is my key. attestd has
// checked the signature and the binding to the channel before.
type Claim struct {
	Session  string
	Key      ed25519.PublicKey
	Manifest []byte // SHA-256 of the manifest payload
	Uptime   time.Duration
}

// Claim decides once and atomically (invariant 5). It returns "" when the
// claim holds, or the reason of the refusal, and the session either way.
//
// The same key claiming the same session again is told yes again: attestd may
// have died between our answer and its note of it. Another key voids the session.
func (m *Manager) Claim(ctx context.Context, c Claim) (string, Session) {
	m.claims.Lock()
	defer m.claims.Unlock()
	e, reason, again := m.judge(c)
	if reason == "" && !again {
		reason = m.settle(ctx, e, c)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if reason != "" {
		m.cfg.Events.Emit("claim.refused", event.Fields{"session": c.Session, "reason": reason})
	}
	if m.current == nil || m.current.ID != c.Session {
		return reason, Session{ID: c.Session}
	}
	return reason, m.current.copy()
}

// judge checks everything that can be checked at once. On success the session
// is marked, so that nothing is served from here on.
func (m *Manager) judge(c Claim) (e *entry, reason string, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e = m.current
	if e != nil && e.ID == c.Session && e.State == Claimed && validKey(c.Key) {
		if e.ClaimKey.Equal(c.Key) {
			return e, "", true
		}
		m.cfg.Events.Emit("claim.double", event.Fields{"session": e.ID, "mac": e.MAC})
		m.void(e, ReasonDouble)
		return e, ReasonDouble, false
	}
	if reason := m.refuse(e, c); reason != "" {
		return e, reason, false
	}
	e.claiming = true
	return e, "", false
}

func (m *Manager) refuse(e *entry, c Claim) string {
	if reason := m.closed(c.Session); reason != "" {
		return reason
	}
	now := m.cfg.Clock.Now()
	switch {
	case !validKey(c.Key):
		return ReasonKeyInvalid
	case m.keys[string(c.Key)]:
		return ReasonKeyUsed
	case e.State != Served:
		return ReasonIncomplete
	case string(c.Manifest) != string(e.Manifest[:]):
		return ReasonManifest
	case now.Sub(e.LastByte) > m.cfg.ClaimWindow:
		return ReasonLate
	case c.Uptime < 0 || c.Uptime > now.Sub(e.BootByte)+UptimeSlack:
		return ReasonUptime
	}
	return ""
}

// settle makes an acceptable claim durable and closes the boot services, then
// accepts it. It fails towards a refusal; the agent may try again.
func (m *Manager) settle(ctx context.Context, e *entry, c Claim) string {
	reason := ""
	if err := m.cfg.SyncLedger(); err != nil {
		reason = ReasonLedger
		m.cfg.Events.Emit("journal.failed", event.Fields{"session": e.ID, "detail": err.Error()})
	} else {
		ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
		defer cancel()
		if err := m.cfg.Gateway.CloseBoot(ctx, e.ID); err != nil {
			reason = ReasonGateway
			m.cfg.Events.Emit("gateway.failed", event.Fields{"session": e.ID, "detail": err.Error()})
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e.claiming = false
	if reason != "" {
		return reason
	}
	// A boot request or a void may have come in meanwhile.
	if reason := m.refuse(e, c); reason != "" && reason != ReasonLate {
		return reason
	}
	return m.accept(e, c)
}

func (m *Manager) accept(e *entry, c Claim) string {
	before := e.Session
	e.State, e.ClaimedAt, e.ClaimKey = Claimed, m.cfg.Clock.Now(), append(ed25519.PublicKey(nil), c.Key...)
	err := m.record(e)
	if err == nil {
		err = m.cfg.Journal.Sync()
	}
	if err != nil {
		e.Session = before
		m.void(e, ReasonJournal)
		return ReasonJournal
	}
	m.keys[string(c.Key)] = true
	m.cfg.Events.Emit("claim.accepted", event.Fields{
		"session": e.ID, "uptime": c.Uptime.Seconds(), "seconds": e.ClaimedAt.Sub(e.Opened).Seconds(),
	})
	m.publish(e)
	return ""
}

func validKey(k ed25519.PublicKey) bool {
	return len(k) == ed25519.PublicKeySize && string(k) != string(make([]byte, ed25519.PublicKeySize))
}
