package server

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/policy"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
	"portcullis/internal/event"
)

// Actions carries out what rules lead to; package action is the real one.
type Actions interface {
	// Post returns when the actions are recorded. It does not wait for them.
	Post(policy.Firing) error
	// Fired tells when a rule fired last, in any life.
	Fired(rule string) time.Time
	// Run works until ctx ends or the actions cannot be recorded.
	Run(ctx context.Context) error
	Close() error
}

const (
	// policyTick is how often the rules are asked although nothing happened: ages
	// grow by themselves.
	policyTick = 5 * time.Second
	// wireTick is how often gatewayd is asked about cable, grants and violations
	// while there is something to see, or it does not tell of changes itself.
	wireTick = 2 * time.Second
	// wireIdle is how often it is asked otherwise: what is not told is how many
	// violations there were after the first, and that a ban has ended.
	wireIdle = 10 * time.Second
)

// rules is what the core holds of the policy.
type rules struct {
	tracker *policy.Tracker
	dirty   bool      // something changed since the rules were asked
	due     time.Time // ask them then

	stateSince   time.Time
	sessionSince time.Time
	wire         wire
	lossesBefore uint64 // of the carrier, when the session began
}

// wire is what gatewayd said last.
type wire struct {
	known      bool // it answers
	heard      bool // it has answered once
	carrier    bool
	losses     uint64
	tasks      []string
	grants     uint64 // given and ended: one that came and went between two questions shows
	violations uint64
	banned     bool
	elsewhere  bool // its phase is not the run of session
	open       bool // its phase is known, and not quarantine
	shut       bool // its phase is quarantine
	session    string
}

// calm tells whether nothing has changed since was, and nothing is wrong.
func (w *wire) calm(was *wire) bool {
	return w.known && was.known && w.carrier && !w.banned && w.violations == was.violations && w.losses == was.losses
}

func newRules(s *Server) rules {
	now := s.o.Clock.Now()
	return rules{tracker: policy.NewTracker(s.policy.Load(), s.actions.Fired), dirty: true, stateSince: now, sessionSince: now}
}

// SetPolicy puts another policy in force, of which the next judgement is.
func (s *Server) SetPolicy(p *policy.Policy) {
	s.policy.Store(p)
	s.post(func(c *core) {
		c.rules.tracker, c.rules.dirty = c.rules.tracker.With(s.policy.Load(), s.actions.Fired), true
	})
}

// begin takes note of a new boot session.
func (r *rules) begin(now time.Time) {
	r.sessionSince, r.lossesBefore, r.dirty = now, r.wire.losses, true
	r.tracker.Session()
}

// judgePolicy asks the rules, where something has changed or is due.
func (c *core) judgePolicy(now time.Time) {
	if c.failure != nil || (!c.rules.dirty && now.Before(c.rules.due)) {
		return
	}
	c.rules.dirty = false
	claims := c.claims(now)
	fired, failed, next := c.rules.tracker.Step(now, &claims)
	c.rules.due = now.Add(policyTick)
	if !next.IsZero() && next.Before(c.rules.due) {
		c.rules.due = next
	}
	for _, o := range failed {
		c.o.Events.Emit("policy.unanswered", event.Fields{"rule": o.Rule.Name, "detail": o.Err.Error()})
	}
	for _, f := range fired {
		// What takes the PC off the network does so before it is written down.
		if f.Rule.Has(policy.Quarantine) && !f.Rule.DryRun && claims.Session != "" {
			c.changed(now, 0, c.machine.Quarantine(verdict.ReasonPolicy))
		}
		if err := c.actions.Post(f); err != nil {
			c.failure = err
			return
		}
	}
}

// claims are what the rules see.
func (c *core) claims(now time.Time) policy.Claims {
	v, r := c.machine.Verdict(), &c.rules
	out := policy.Claims{
		State: v.State.String(), StateAge: age(now, r.stateSince), Reason: v.Reason, Tier: string(v.Tier), Posture: c.o.Posture,
		Session: v.Session, SessionAge: age(now, r.sessionSince), Challenges: int64(v.Challenges), Failures: int64(v.Failures),
		Agent: c.link != nil, Gateway: r.wire.known, Carrier: r.wire.carrier, LinkLosses: int64(r.wire.losses - min(r.lossesBefore, r.wire.losses)),
		Tasks: r.wire.tasks, Violations: int64(r.wire.violations), Banned: r.wire.banned,
	}
	if c.state != nil && c.image != nil {
		out.Image, out.Version, out.LabImage = c.image.Manifest.Image, int64(c.image.Manifest.Version), c.image.Manifest.LabChannel
	}
	for _, w := range v.Warnings[:min(len(v.Warnings), policy.MaxFindings)] {
		out.Warnings = append(out.Warnings, short(w))
	}
	drift := protocol.Class(-1)
	for _, f := range v.Findings[:min(len(v.Findings), policy.MaxFindings)] {
		out.Findings = append(out.Findings, policy.Finding{Probe: short(f.Probe), Reason: short(f.Reason), Class: f.Class.String(),
			Detail: short(f.Detail), Age: age(now, f.Time)})
		if f.Probe == "hw" || f.Probe == "fingerprint" {
			drift = max(drift, f.Class)
		}
	}
	if drift >= 0 {
		out.Drift = drift.String()
	}
	return out
}

func age(now, since time.Time) time.Duration { return max(now.Sub(since), 0) }

func short(s string) string { return strings.ToValidUTF8(s[:min(len(s), policy.MaxText)], "") }

// watchWire asks gatewayd for what rules may want to know, at once when it says
// that something has changed.
func (s *Server) watchWire(ctx context.Context) {
	var was wire
	var pause time.Duration
	there := s.begun()
	look := func() {
		w := s.askWire(ctx)
		there = s.postHere(func(c *core) { c.wired(w) })
		if pause = wireTick; s.heeding.Load() && w.calm(&was) {
			pause = wireIdle
		}
		was = w
	}
	for there && ctx.Err() == nil {
		if deep.do(look); !there {
			return
		}
		select {
		case <-ctx.Done():
		case <-s.bell:
		case <-s.o.Clock.After(apart(pause)):
		}
	}
}

// apart is d on average: the PCs of a rack, which begin together, do not all ask at the
// same moment for ever after.
func apart(d time.Duration) time.Duration { return d - d/8 + rand.N(d/4) }

func (s *Server) askWire(ctx context.Context) (w wire) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := s.o.Gateway.GetGatewayStatus(ctx, connect.NewRequest(&portcullisv1.GetGatewayStatusRequest{}))
	if err != nil {
		return w
	}
	w = wire{known: true, heard: true, session: r.Msg.Session,
		elsewhere: r.Msg.Phase != portcullisv1.Phase_PHASE_RUN && r.Msg.Phase != portcullisv1.Phase_PHASE_UNSPECIFIED,
		shut:      r.Msg.Phase == portcullisv1.Phase_PHASE_QUARANTINE,
		open:      r.Msg.Phase != portcullisv1.Phase_PHASE_QUARANTINE && r.Msg.Phase != portcullisv1.Phase_PHASE_UNSPECIFIED, carrier: r.Msg.Carrier, losses: r.Msg.CarrierLosses, grants: r.Msg.GrantChanges, violations: r.Msg.ViolationsTotal, banned: len(r.Msg.Bans) > 0}
	for _, g := range r.Msg.Grants {
		if !slices.Contains(w.tasks, g.Task) && len(w.tasks) < policy.MaxTasks {
			w.tasks = append(w.tasks, short(g.Task))
		}
	}
	return w
}

// wired takes what gatewayd said. While it says nothing, its last words stand.
func (c *core) wired(w wire) {
	was := c.rules.wire
	if !w.known {
		w = was
		w.known = false
	}
	switch {
	case w.heard && !was.heard:
		c.rules.lossesBefore = w.losses // those before are of nobody knows what session
	case w.losses < was.losses:
		c.rules.lossesBefore = 0 // gatewayd has begun to count anew
	}
	c.rules.dirty = c.rules.dirty || w.known != was.known || w.carrier != was.carrier || w.losses != was.losses || w.banned != was.banned ||
		w.violations != was.violations || !slices.Equal(w.tasks, was.tasks)
	c.rules.wire = w
	c.continuous(w)
	c.wireBurst(was, w)
	if w.known && c.machine.State() == verdict.Trusted && (w.elsewhere || w.session != "" && w.session != c.machine.Session()) {
		c.enforce.forget() // it was started anew, or the run has ended there: the next good answer is told
	}
	if w.known && w.shut && w.session == c.machine.Session() && c.machine.State() != verdict.Quarantined {
		c.changed(c.o.Clock.Now(), 0, c.machine.Quarantine(verdict.ReasonGateway)) // what it keeps shut is not to be called trusted
	}
	if w.known && w.open && was.open && w.session == was.session && w.session == c.machine.Session() && c.machine.State() == verdict.Quarantined {
		// Twice in a row: it was killed between its answer and its disk, and began anew without it.
		c.enforcePhase(&verdict.Change{To: verdict.Quarantined, Reason: verdict.ReasonRestored})
	}
}

// Session is the newest boot session that attestd knows, "" before the first.
func (s *Server) Session() string { return s.status.now.Load().verdict.Session }

// Agent tells whether the agent's channel is up.
func (s *Server) Agent() bool { return s.status.now.Load().agent }

var errNoAgent = errors.New("the agent of this session is not connected")

// Down sends the agent a signed message to take the PC down.
func (s *Server) Down(ctx context.Context, id [16]byte, session string, off bool) error {
	sent := make(chan error, 1)
	if !s.post(func(c *core) {
		if c.link == nil || c.machine.Session() != session {
			sent <- errNoAgent
			return
		}
		if !c.send(&protocol.Message{Body: &protocol.Message_Down{
			Down: protocol.NewDown(c.o.Key, c.link.peer.Binding, id, session, off)}}) {
			sent <- errors.New("the agent takes no messages")
			return
		}
		sent <- nil
	}) {
		return errors.New("attestd is stopping")
	}
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
