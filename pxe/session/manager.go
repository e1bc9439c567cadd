package session

import (
	"context"
	"crypto/rand"
	"io"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"portcullis/images/manifest"
	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/journal"
	"portcullis/pxe/artefact"
)

// Gateway is what a session needs of gatewayd.
type Gateway interface {
	// OpenBoot returns once all trust of the port is ended and the boot phase is enforced.
	OpenBoot(ctx context.Context, session, mac string, address netip.Addr) error
	// CloseBoot returns once the boot services of the session are closed to the PC.
	CloseBoot(ctx context.Context, session string) error
	// Session returns the session that gatewayd takes for the current one, "" for none.
	Session(ctx context.Context) (string, error)
}

// Limits of time and rate.
const (
	// Young is how long a session that nobody has fetched from takes further
	// boot requests as its own: firmware asks again on every boot option it tries.
	Young = 60 * time.Second
	// UptimeSlack is allowed for between the PC's clock and ours.
	UptimeSlack = 2 * time.Second
	// newEvery and newBurst bound how often an unclaimed boot may be started anew.
	newEvery = 20 * time.Second
	newBurst = 32
	// maxServed is how many times the size of its artefacts a session may be
	// sent. Resumed downloads need a little more than one.
	maxServed = 8
	// gatewayTimeout bounds one call to gatewayd.
	gatewayTimeout = 5 * time.Second
)

// Config of a Manager. All fields but Random and Events are needed.
type Config struct {
	MAC         string
	Address     netip.Addr
	ClaimWindow time.Duration
	Clock       clock.Clock
	Random      io.Reader
	Events      *event.Writer
	Gateway     Gateway
	Journal     *journal.Journal
	SyncLedger  func() error // makes all that was served durable
}

// Manager owns the sessions. It is safe for concurrent use.
type Manager struct {
	cfg   Config
	limit *rate.Limiter

	boots  sync.Mutex // one boot request at a time; taken before claims and mu
	claims sync.Mutex // one claim at a time; taken before mu

	mu       sync.Mutex
	current  *entry // the newest session, live or not; nil before the first
	past     map[string]bool
	keys     map[string]bool // every claim key ever accepted
	watchers map[*watcher]bool
}

// entry is a session with what does not leave the package.
type entry struct {
	Session
	image    *artefact.Image
	covers   map[string]*cover
	sent     int64 // bytes, resumed ones counted again
	claiming bool  // a claim is being made durable: nothing is served any more
}

// New makes a manager without sessions; Restore fills in what a journal holds.
func New(cfg Config) *Manager {
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	return &Manager{
		cfg:      cfg,
		limit:    rate.NewLimiter(rate.Every(newEvery), newBurst),
		past:     map[string]bool{},
		keys:     map[string]bool{},
		watchers: map[*watcher]bool{},
	}
}

// BootRequest is a DISCOVER of a firmware.
type BootRequest struct {
	XID      uint32
	Firmware Firmware
	Image    *artefact.Image
}

// Boot answers a boot request with the session that it belongs to. Unless it
// continues one that is young and still unused, the machine has been restarted:
// then the old session ends, gatewayd ends all trust and only when it has
// done so is the new session returned (invariant 4). An error is a *Refusal.
func (m *Manager) Boot(ctx context.Context, r BootRequest) (Session, error) {
	m.boots.Lock()
	defer m.boots.Unlock()
	if s, ok := m.proceed(r); ok {
		return s, nil
	}
	if !m.endForBoot() {
		return Session{}, &Refusal{Reason: ReasonRate}
	}
	id, err := newID(m.cfg.Random)
	if err != nil {
		return Session{}, &Refusal{ReasonJournal, err}
	}
	ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
	defer cancel()
	if err := m.cfg.Gateway.OpenBoot(ctx, id, m.cfg.MAC, m.cfg.Address); err != nil {
		return Session{}, &Refusal{ReasonGateway, err}
	}
	return m.open(id, r)
}

// proceed returns the current session if r belongs to it.
func (m *Manager) proceed(r BootRequest) (Session, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, now := m.current, m.cfg.Clock.Now()
	if e == nil || !e.Live() || e.claiming || e.image != r.Image || now.Sub(e.Opened) >= Young {
		return Session{}, false
	}
	// Before the first byte nothing is lost by going on under the same id, and a
	// flood of requests costs nothing. After it only a retransmission goes on.
	if e.State != Offered && e.xid != r.XID {
		return Session{}, false
	}
	if e.State == Offered && (e.Firmware != r.Firmware || e.xid != r.XID) {
		changed := e.Firmware != r.Firmware
		e.Firmware, e.xid = r.Firmware, r.XID
		e.Artefacts = progress(r)
		if err := m.record(e); err != nil {
			return Session{}, false
		}
		if changed {
			m.cfg.Events.Emit("session.firmware", event.Fields{"session": e.ID, "firmware": string(e.Firmware)})
			m.publish(e)
		}
	}
	return e.copy(), true
}

// endForBoot ends what is current and tells whether a new session may be opened now.
func (m *Manager) endForBoot() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	claimed := m.current != nil && m.current.State == Claimed
	m.end(m.current, EndBootRequest)
	// A claimed boot always takes the time of a boot: ending it is never a flood.
	// What is not opened in the end, because gatewayd is away, is not counted.
	return m.limit.TokensAt(m.cfg.Clock.Now()) >= 1 || claimed
}

func (m *Manager) open(id string, r BootRequest) (Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		m.past[m.current.ID] = true
	}
	e := &entry{
		Session: Session{
			ID: id, MAC: m.cfg.MAC, Address: m.cfg.Address, Firmware: r.Firmware, State: Offered,
			Opened: m.cfg.Clock.Now(), Manifest: r.Image.Manifest.Digest, Artefacts: progress(r), xid: r.XID,
		},
		image:  r.Image,
		covers: map[string]*cover{},
	}
	if err := m.record(e); err != nil {
		return Session{}, &Refusal{ReasonJournal, err}
	}
	m.limit.AllowN(e.Opened, 1)
	m.current = e
	m.cfg.Events.Emit("session.opened", event.Fields{"session": id, "mac": e.MAC, "firmware": string(e.Firmware)})
	m.publish(e)
	return e.copy(), nil
}

func progress(r BootRequest) []Progress {
	var all []Progress
	for _, name := range append(r.Firmware.Mandatory(), manifest.Envelope) {
		if a, ok := r.Image.Artefact(name); ok {
			all = append(all, Progress{Name: name, Size: a.Size})
		}
	}
	return all
}

// end ends a session that has not ended; e may be nil. The caller holds mu.
func (m *Manager) end(e *entry, reason string) {
	if e == nil || e.State == Ended {
		return
	}
	e.State, e.Reason, e.image = Ended, reason, nil
	m.recordOrReport(e)
	m.cfg.Events.Emit("session.ended", event.Fields{"session": e.ID, "reason": reason})
	m.publish(e)
}

// End gives the current session up: gatewayd takes back what it opened for it,
// then it is over, also where gatewayd cannot be reached: a run that nobody
// renews ends there by itself.
func (m *Manager) End(ctx context.Context, reason string) {
	m.boots.Lock()
	defer m.boots.Unlock()
	s, ok := m.Newest()
	if !ok || s.State == Ended {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
	defer cancel()
	if err := m.cfg.Gateway.CloseBoot(ctx, s.ID); err != nil {
		m.cfg.Events.Emit("gateway.failed", event.Fields{"session": s.ID, "detail": err.Error()})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end(m.current, reason)
}

// Void makes the session id unclaimable for ever. It does nothing to one that is not current.
func (m *Manager) Void(id, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil && m.current.ID == id {
		m.void(m.current, reason)
	}
}

func (m *Manager) void(e *entry, reason string) {
	if e.State == Void || e.State == Ended {
		return
	}
	e.State, e.Reason = Void, reason
	m.recordOrReport(e)
	m.cfg.Events.Emit("session.void", event.Fields{"session": e.ID, "reason": reason})
	m.publish(e)
}

// Newest returns the newest session.
func (m *Manager) Newest() (Session, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil {
		return Session{}, false
	}
	return m.current.copy(), true
}

// Find returns the session id; of past sessions only id, state and reason are kept.
func (m *Manager) Find(id string) (Session, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.current != nil && m.current.ID == id:
		return m.current.copy(), true
	case m.past[id]:
		return Session{ID: id, State: Ended, Reason: ReasonSuperseded}, true
	}
	return Session{}, false
}

func (e *entry) copy() Session {
	s := e.Session
	s.Artefacts = append([]Progress(nil), e.Artefacts...)
	s.ClaimKey = append([]byte(nil), e.ClaimKey...)
	return s
}
