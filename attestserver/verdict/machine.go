// Package verdict is the state machine of trust: what is believed of the PC
// after each answer, silence and boot. It is pure (time comes in as a value)
// and owned by one goroutine of attestserver/server.
//
//	unknown ──full pass──▶ trusted ──failure──▶ suspect ──clean burst──▶ trusted
//	   │                      │                    │
//	   └─reference missing─▶ enrolling          2nd failure ─▶ quarantined
//
// Answers that are right and slow again and again make a suspect too, and are no
// failure.
//
// Quarantined ends with the next boot session only.
package verdict

import (
	"maps"
	"slices"
	"time"

	"portcullis/attestserver/protocol"
)

// State of the PC.
type State int

// States; the zero value is not one of them.
const (
	Unknown State = iota + 1
	Enrolling
	Trusted
	Suspect
	Quarantined
)

func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Enrolling:
		return "enrolling"
	case Trusted:
		return "trusted"
	case Suspect:
		return "suspect"
	case Quarantined:
		return "quarantined"
	}
	return "invalid"
}

// Reasons of a change of state beside those of findings.
const (
	ReasonStart    = "attestd-started"
	ReasonSession  = "session-new"
	ReasonEnded    = "session-ended"
	ReasonLink     = "link-lost" // the cable lost its carrier: nobody knows what is behind it now
	ReasonVoid     = "session-void"
	ReasonEnrol    = "reference-missing"
	ReasonPassed   = "evidence-accepted"
	ReasonBurst    = "burst-clean"
	ReasonExpired  = "verdict-expired"
	ReasonRestored = "quarantine-kept"
	ReasonGateway  = "quarantine-gateway" // gatewayd gives the session no run any more: the Pi lost its power
	ReasonPolicy   = "policy-rule"        // a rule of the operator's quarantines
	ReasonTier     = "tier-changed"       // trusted as before, on another root of trust
)

// BurstSize good answers in a row make a suspect trusted again.
const BurstSize = 3

// MaxFindings bounds what a verdict shows; the journal has all of them.
const MaxFindings = 64

// Finding is a finding with its place in time.
type Finding struct {
	protocol.Finding
	Time     time.Time
	Sequence uint64
}

// Verdict is what is believed, for how long, and why.
type Verdict struct {
	Session    string
	State      State
	Tier       protocol.Tier // of what has been shown in this session
	Reason     string        // of the last change of state
	NotAfter   time.Time     // zero unless trusted or suspect after trust
	Challenges uint64        // judged in this session
	Failures   uint64
	Findings   []Finding // the newest first
	Warnings   []string
	Evidence   [32]byte // chain head after the last accepted evidence
}

// Change is a transition; To equals From when a trusted verdict was renewed or,
// with ReasonTier, rests on another root of trust than before.
type Change struct {
	From, To State
	Reason   string
}

// Limits are the machine's numbers.
type Limits struct {
	Life   time.Duration // how long a good answer is worth something
	Window time.Duration // two soft failures within it quarantine, burst or no burst
}

// Machine judges one PC. It is not safe for concurrent use.
type Machine struct {
	limits Limits
	v      Verdict

	full   bool      // one challenge with every probe has passed in this session, on this start of attestd
	doubt  bool      // a failure has not been followed by a clean burst yet
	mild   bool      // the doubt is of findings that are no failure
	last   time.Time // of the last failure
	fatal  bool      // there was a failure with a fatal finding: never forgiven within the session
	clean  int       // good answers in a row since the last failure
	failed []string
	roots  map[string]protocol.Tier // what each op that asks a root of trust has shown, and not lost since

	standing map[string][]string // warnings that hold for now, by who gave them
}

// New starts at unknown.
func New(limits Limits) *Machine {
	return &Machine{limits: limits, v: Verdict{State: Unknown, Tier: protocol.TierSoftware, Reason: ReasonStart}}
}

// Verdict returns a copy of what is believed now.
func (m *Machine) Verdict() Verdict {
	v := m.v
	v.Findings = append([]Finding(nil), m.v.Findings...)
	v.Warnings = append([]string(nil), m.v.Warnings...)
	if len(m.standing) > 0 {
		for _, source := range slices.Sorted(maps.Keys(m.standing)) {
			v.Warnings = append(v.Warnings, m.standing[source]...)
		}
	}
	return v
}

// State is the current state.
func (m *Machine) State() State { return m.v.State }

// NotAfter is when the verdict expires; zero where nothing is believed.
func (m *Machine) NotAfter() time.Time { return m.v.NotAfter }

// Session is the current boot session, "" before the first.
func (m *Machine) Session() string { return m.v.Session }

// Full tells whether the next challenge must hold every probe: until one such
// challenge has passed, nothing has been shown.
func (m *Machine) Full() bool { return !m.full }

// Burst tells whether the next challenge belongs to a burst.
func (m *Machine) Burst() bool { return m.doubt && m.v.State != Quarantined }

// Failed names the probes that failed last: a burst asks them again.
func (m *Machine) Failed() []string { return m.failed }

// NewSession forgets everything: a boot request ends trust.
func (m *Machine) NewSession(session, reason string) *Change {
	from := m.v.State
	*m = Machine{limits: m.limits, v: Verdict{Session: session, State: Unknown, Tier: protocol.TierSoftware, Reason: reason}}
	return &Change{from, Unknown, reason}
}

// Quarantine ends belief in this boot session: it was voided by pxed, or was
// quarantined before attestd started anew.
func (m *Machine) Quarantine(reason string) *Change { return m.move(Quarantined, reason) }

// Doubt carries a failure over from before attestd started anew: who can make
// attestd fall over must not be forgiven by it.
func (m *Machine) Doubt(fatal bool) { m.doubt, m.fatal = true, m.fatal || fatal }

// Enrolling notes that a reference has to be taken first.
func (m *Machine) Enrolling() *Change {
	if m.v.State != Unknown {
		return nil
	}
	return m.move(Enrolling, ReasonEnrol)
}

// Warn adds a warning to the verdict, once.
func (m *Machine) Warn(warning string) {
	for _, w := range m.v.Warnings {
		if w == warning {
			return
		}
	}
	m.v.Warnings = append(m.v.Warnings, warning)
}

// Raise notes the tier that the answer of an op has shown. The verdict has the
// highest of all ops. It is lost with the session, with a failure of that op and
// with the verdict's time.
func (m *Machine) Raise(op string, tier protocol.Tier) {
	if m.roots == nil {
		m.roots = make(map[string]protocol.Tier)
	}
	m.roots[op] = tier
}

// tier is the highest that has been shown.
func (m *Machine) tier() protocol.Tier {
	highest := protocol.TierSoftware
	for _, t := range m.roots {
		highest = max(highest, t)
	}
	return highest
}

// Stand replaces the warnings of one source that hold for now.
func (m *Machine) Stand(source string, warnings []string) {
	if len(warnings) == 0 {
		delete(m.standing, source)
		return
	}
	if m.standing == nil {
		m.standing = make(map[string][]string)
	}
	m.standing[source] = warnings
}

// Passed takes an accepted answer. full: every probe was asked and judged.
// It returns a Change also when a trusted verdict was renewed.
func (m *Machine) Passed(now time.Time, full bool, evidence [32]byte) *Change {
	m.v.Challenges++
	m.v.Evidence = evidence
	m.full = m.full || full
	m.clean++
	if m.v.State == Quarantined || !m.full {
		return nil
	}
	if m.doubt {
		if m.clean < BurstSize {
			return nil
		}
		m.doubt, m.mild, m.failed = false, false, nil
	}
	reason := ReasonPassed
	if m.v.State == Suspect {
		reason = ReasonBurst
	}
	m.v.NotAfter = now.Add(m.limits.Life)
	tier := m.tier()
	raised := tier != m.v.Tier
	m.v.Tier = tier
	if m.v.State == Trusted {
		if raised {
			m.v.Reason, reason = ReasonTier, ReasonTier
		}
		return &Change{Trusted, Trusted, reason}
	}
	return m.move(Trusted, reason)
}

// Recorded counts an answer that was accepted but decides nothing: a reference
// was taken, or an op waits for one.
func (m *Machine) Recorded(evidence [32]byte) {
	m.v.Challenges++
	m.v.Evidence = evidence
}

// Note adds findings without a failure (class info).
func (m *Machine) Note(now time.Time, sequence uint64, findings []protocol.Finding) {
	for _, f := range findings {
		m.v.Findings = append([]Finding{{f, now, sequence}}, m.v.Findings...)
	}
	if len(m.v.Findings) > MaxFindings {
		m.v.Findings = m.v.Findings[:MaxFindings]
	}
}

// Fail counts one failed challenge, whatever the number of its findings. The
// first failure makes a suspect. The second quarantines: before a clean burst,
// within Window of the one before it, or at any time of the session when both
// had a fatal finding. So nobody keeps silent, cleans up, passes the burst and
// goes on like that.
func (m *Machine) Fail(now time.Time, sequence uint64, findings []protocol.Finding) *Change {
	m.Note(now, sequence, findings)
	m.v.Challenges++
	m.v.Failures++
	m.clean = 0
	second := m.doubt && !m.mild || (!m.last.IsZero() && now.Sub(m.last) < m.limits.Window)
	m.doubt, m.mild, m.last = true, false, now
	m.failed = nil
	reason, fatal := "", false
	for _, f := range findings {
		if f.Class == protocol.Info {
			continue
		}
		fatal = fatal || f.Class == protocol.Fatal
		m.failed = append(m.failed, f.Probe)
		delete(m.roots, f.Probe)
		if reason == "" {
			reason = f.Reason
		}
	}
	m.v.Tier = m.tier()
	second = second || (fatal && m.fatal)
	m.fatal = m.fatal || fatal
	switch {
	case m.v.State == Quarantined:
		return nil
	case second:
		return m.move(Quarantined, reason)
	default:
		return m.move(Suspect, reason)
	}
}

// Doubtful makes a suspect of a trusted PC whose answer was right but came with
// findings that may be chance however often they come: a burst is asked. It is no
// failure: the next one is the first, so that by such findings alone nobody is
// quarantined.
func (m *Machine) Doubtful(now time.Time, sequence uint64, findings []protocol.Finding, evidence [32]byte) *Change {
	if m.v.State != Trusted || len(findings) == 0 {
		return nil
	}
	m.Note(now, sequence, findings)
	m.v.Challenges++
	m.v.Evidence = evidence
	m.clean = 0
	m.doubt, m.mild, m.failed = true, true, nil
	return m.move(Suspect, findings[0].Reason)
}

// Window is how near to each other two failures quarantine.
func (m *Machine) Window() time.Duration { return m.limits.Window }

// Tick lets a verdict expire. What counts against the session stays counted.
func (m *Machine) Tick(now time.Time) *Change {
	if (m.v.State != Trusted && m.v.State != Suspect) || m.v.NotAfter.IsZero() || now.Before(m.v.NotAfter) {
		return nil
	}
	m.full, m.roots, m.v.Tier = false, nil, protocol.TierSoftware
	return m.move(Unknown, ReasonExpired)
}

func (m *Machine) move(to State, reason string) *Change {
	from := m.v.State
	if to != Trusted && to != Suspect {
		m.v.NotAfter = time.Time{}
	}
	if from == to {
		return nil
	}
	m.v.State, m.v.Reason = to, reason
	return &Change{from, to, reason}
}
