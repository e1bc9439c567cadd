package verdict

import (
	"math/rand/v2"
	"testing"
	"time"

	"portcullis/attestserver/protocol"
)

var (
	t0     = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	limits = Limits{Life: 30 * time.Second, Window: 5 * time.Minute}
	soft   = []protocol.Finding{{Probe: "evidence", Reason: "evidence-late", Class: protocol.Soft}}
	fatal  = []protocol.Finding{{Probe: "procs", Reason: "procs-wrong", Class: protocol.Fatal}}
	note   = []protocol.Finding{{Probe: "hw", Reason: "hw-note", Class: protocol.Info}}
)

func at(seconds int) time.Time { return t0.Add(time.Duration(seconds) * time.Second) }

// trusted returns a machine that has just come to trust.
func trusted(t *testing.T) *Machine {
	t.Helper()
	m := New(limits)
	m.NewSession("s", ReasonSession)
	if c := m.Passed(at(0), true, [32]byte{1}); c == nil || c.To != Trusted {
		t.Fatalf("a full pass gave %v", c)
	}
	return m
}

func want(t *testing.T, m *Machine, s State, reason string) {
	t.Helper()
	if v := m.Verdict(); v.State != s || v.Reason != reason {
		t.Fatalf("%v (%s), want %v (%s)", v.State, v.Reason, s, reason)
	}
}

func TestInvariant06_BeginsAtUnknown(t *testing.T) {
	want(t, New(limits), Unknown, ReasonStart)
}

func TestOnlyAFullPassBringsTrust(t *testing.T) {
	m := New(limits)
	m.NewSession("s", ReasonSession)
	for i := range 5 {
		if c := m.Passed(at(i), false, [32]byte{}); c != nil || m.State() != Unknown {
			t.Fatalf("a part of the probes gave %v", c)
		}
	}
	m.Passed(at(6), true, [32]byte{})
	want(t, m, Trusted, ReasonPassed)
}

func TestInvariant06_AVerdictExpires(t *testing.T) {
	m := trusted(t)
	if c := m.Tick(at(29)); c != nil {
		t.Fatal("expired early")
	}
	if c := m.Passed(at(20), false, [32]byte{}); c == nil || c.From != Trusted || c.To != Trusted {
		t.Fatal("not renewed")
	}
	if c := m.Tick(at(49)); c != nil {
		t.Fatal("the renewal is worth nothing")
	}
	if c := m.Tick(at(50)); c == nil || c.To != Unknown {
		t.Fatal("did not expire")
	}
	want(t, m, Unknown, ReasonExpired)
	// A part of the probes does not bring it back.
	if c := m.Passed(at(51), false, [32]byte{}); c != nil {
		t.Fatal("back without a full pass")
	}
	m.Passed(at(52), true, [32]byte{})
	want(t, m, Trusted, ReasonPassed)
}

func TestFirstFailureSuspectsSecondQuarantines(t *testing.T) {
	for _, f := range [][]protocol.Finding{soft, fatal} {
		m := trusted(t)
		m.Fail(at(1), 1, f)
		want(t, m, Suspect, f[0].Reason)
		if !m.Burst() || len(m.Failed()) != 1 || m.Failed()[0] != f[0].Probe {
			t.Fatalf("burst %v, failed %v", m.Burst(), m.Failed())
		}
		m.Passed(at(2), true, [32]byte{})
		m.Fail(at(3), 2, f)
		want(t, m, Quarantined, f[0].Reason)
		if m.Burst() {
			t.Fatal("a burst after the decision")
		}
	}
}

func TestACleanBurstBringsTrustBack(t *testing.T) {
	m := trusted(t)
	m.Fail(at(1), 1, soft)
	for i := range BurstSize - 1 {
		if c := m.Passed(at(2+i), false, [32]byte{}); c != nil {
			t.Fatalf("after %d good answers: %v", i+1, c)
		}
	}
	m.Passed(at(5), false, [32]byte{})
	want(t, m, Trusted, ReasonBurst)
	if m.Burst() || m.Failed() != nil {
		t.Fatal("the burst does not end")
	}
}

// The attacker keeps silent when it matters, cleans up, and passes the burst.
func TestDutyCycleAttackWithinTheWindowQuarantines(t *testing.T) {
	m := trusted(t)
	m.Fail(at(1), 1, soft)
	for i := range BurstSize {
		m.Passed(at(2+i), true, [32]byte{})
	}
	want(t, m, Trusted, ReasonBurst)
	m.Fail(at(60), 9, soft)
	want(t, m, Quarantined, "evidence-late")
}

func TestSoftFailuresFarApartAreForgivenFatalOnesAreNot(t *testing.T) {
	for _, c := range []struct {
		first, second []protocol.Finding
		want          State
	}{{soft, soft, Suspect}, {soft, fatal, Suspect}, {fatal, soft, Suspect}, {fatal, fatal, Quarantined}} {
		m := trusted(t)
		m.Fail(at(1), 1, c.first)
		for i := range BurstSize {
			m.Passed(at(2+i), true, [32]byte{})
		}
		m.Fail(at(10_000), 99, c.second)
		if m.State() != c.want {
			t.Errorf("%s then %s: %v, want %v", c.first[0].Class, c.second[0].Class, m.State(), c.want)
		}
	}
}

func TestSuspectThatNeverWasTrustedNeedsAFullPassToo(t *testing.T) {
	m := New(limits)
	m.NewSession("s", ReasonSession)
	m.Fail(at(1), 1, soft)
	for i := range BurstSize + 2 {
		m.Passed(at(2+i), false, [32]byte{})
	}
	want(t, m, Suspect, "evidence-late")
	m.Passed(at(9), true, [32]byte{})
	want(t, m, Trusted, ReasonBurst)
}

func TestExpiryForgetsNoFailure(t *testing.T) {
	m := trusted(t)
	m.Fail(at(1), 1, soft)
	m.Tick(at(31))
	want(t, m, Unknown, ReasonExpired)
	m.Passed(at(32), true, [32]byte{})
	want(t, m, Unknown, ReasonExpired) // the doubt wants its clean burst
	m.Fail(at(33), 2, soft)
	want(t, m, Quarantined, "evidence-late")
}

func TestQuarantineEndsWithANewSessionOnly(t *testing.T) {
	m := trusted(t)
	m.Quarantine(ReasonVoid)
	for i := range 10 {
		if c := m.Passed(at(i), true, [32]byte{}); c != nil {
			t.Fatalf("left quarantine: %v", c)
		}
		if c := m.Fail(at(i), 1, fatal); c != nil {
			t.Fatalf("left quarantine: %v", c)
		}
		if c := m.Tick(at(1000 + i)); c != nil {
			t.Fatalf("left quarantine: %v", c)
		}
		if c := m.Enrolling(); c != nil {
			t.Fatalf("left quarantine: %v", c)
		}
	}
	m.NewSession("t", ReasonSession)
	want(t, m, Unknown, ReasonSession)
	if v := m.Verdict(); v.Failures != 0 || len(v.Findings) != 0 || v.Session != "t" {
		t.Fatalf("left over: %+v", v)
	}
}

func TestEnrollingThenTrusted(t *testing.T) {
	m := New(limits)
	m.NewSession("s", ReasonSession)
	m.Enrolling()
	want(t, m, Enrolling, ReasonEnrol)
	m.Warn("taken on this boot")
	m.Warn("taken on this boot")
	m.Recorded([32]byte{2})
	m.Passed(at(3), true, [32]byte{3})
	want(t, m, Trusted, ReasonPassed)
	if v := m.Verdict(); len(v.Warnings) != 1 || v.Challenges != 2 || v.Evidence != [32]byte{3} {
		t.Fatalf("%+v", v)
	}
}

func TestInfoIsNoFailureAndFindingsAreBounded(t *testing.T) {
	m := trusted(t)
	for i := range 3 * MaxFindings {
		m.Note(at(i), uint64(i), note)
	}
	want(t, m, Trusted, ReasonPassed)
	v := m.Verdict()
	if len(v.Findings) != MaxFindings || v.Findings[0].Sequence != 3*MaxFindings-1 {
		t.Fatalf("%d findings, newest %d", len(v.Findings), v.Findings[0].Sequence)
	}
	v.Findings[0].Reason = "changed by a caller"
	if m.Verdict().Findings[0].Reason != "hw-note" {
		t.Fatal("the verdict is not a copy")
	}
}

// Whatever happens, in whatever order: trust needs a full pass since the last
// expiry, has an end in the future of its evidence, and quarantine is for good.
func TestRandomWalksKeepTheRules(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := New(limits)
		m.NewSession("s", ReasonSession)
		now, full, quarantined := 0, false, false
		for range 200 {
			now += r.IntN(20)
			switch r.IntN(8) {
			case 0, 1, 2:
				f := r.IntN(2) == 0
				m.Passed(at(now), f, [32]byte{})
				full = full || f
			case 3:
				m.Fail(at(now), 1, soft)
			case 4:
				m.Fail(at(now), 1, fatal)
			case 5:
				if c := m.Tick(at(now)); c != nil {
					full = false
				}
			case 6:
				m.Enrolling()
			case 7:
				if r.IntN(10) == 0 {
					m.NewSession("t", ReasonSession)
					full, quarantined = false, false
				}
			}
			v := m.Verdict()
			switch {
			case v.State == Trusted && !full:
				t.Fatalf("seed %d: trusted without a full pass", seed)
			case v.State == Trusted && v.NotAfter.IsZero():
				t.Fatalf("seed %d: trusted without an end", seed)
			case quarantined && v.State != Quarantined:
				t.Fatalf("seed %d: left quarantine", seed)
			}
			quarantined = v.State == Quarantined
		}
	}
}

func TestInvariant10_TierFollowsTheRootOfTrust(t *testing.T) {
	tpm := []protocol.Finding{{Probe: "tpm", Reason: "tpm-quote", Class: protocol.Fatal}}
	m := trusted(t)
	tier := func(want protocol.Tier) {
		t.Helper()
		if got := m.Verdict().Tier; got != want {
			t.Fatalf("tier %s, want %s", got, want)
		}
	}
	tier(protocol.TierSoftware)
	m.Raise("tpm", protocol.TierTPM)
	tier(protocol.TierSoftware) // not before an answer passed with it
	if c := m.Passed(at(1), false, [32]byte{}); c == nil || *c != (Change{Trusted, Trusted, ReasonTier}) {
		t.Fatalf("raised: %v", c)
	}
	tier(protocol.TierTPM)
	if c := m.Passed(at(2), false, [32]byte{}); c == nil || c.Reason != ReasonPassed {
		t.Fatalf("renewed: %v", c)
	}
	m.Fail(at(3), 1, fatal) // of another op
	tier(protocol.TierTPM)
	m.Fail(at(4), 2, tpm)
	tier(protocol.TierSoftware)

	m = trusted(t)
	m.Raise("tpm", protocol.TierTPM)
	m.Raise("tsm", protocol.TierTEE)
	m.Passed(at(1), false, [32]byte{})
	tier(protocol.TierTEE)
	m.Tick(at(100))
	tier(protocol.TierSoftware)

	m = trusted(t)
	m.Raise("tpm", protocol.TierTPM)
	m.Passed(at(1), false, [32]byte{})
	m.NewSession("next", ReasonSession)
	tier(protocol.TierSoftware)
	m.Passed(at(2), true, [32]byte{})
	tier(protocol.TierSoftware)
}

// What stands is replaced by its source, also by nothing, and ends with the session.
func TestStandingWarningsAreReplaced(t *testing.T) {
	m := New(Limits{})
	m.Warn("for good")
	m.Stand("hw", []string{"one", "two"})
	m.Stand("net", []string{"three"})
	m.Stand("hw", []string{"four"})
	if w := m.Verdict().Warnings; len(w) != 3 || w[0] != "for good" || w[1] != "four" || w[2] != "three" {
		t.Errorf("%q", w)
	}
	m.Stand("hw", nil)
	if w := m.Verdict().Warnings; len(w) != 2 {
		t.Errorf("%q", w)
	}
	m.NewSession("another", ReasonSession)
	if w := m.Verdict().Warnings; len(w) != 0 {
		t.Errorf("in the next session: %q", w)
	}
}

// Doubt that is no failure: the failure after it is the first.
func TestDoubtfulIsNoFailure(t *testing.T) {
	slow := []protocol.Finding{{Probe: "evidence", Reason: "evidence-slow", Class: protocol.Soft}}
	m := trusted(t)
	for i := range 20 {
		if c := m.Doubtful(at(10*i), 1, slow, [32]byte{}); c == nil || *c != (Change{Trusted, Suspect, "evidence-slow"}) {
			t.Fatalf("%v", c)
		}
		if !m.Burst() {
			t.Fatal("no burst")
		}
		for range BurstSize {
			m.Passed(at(10*i+1), false, [32]byte{})
		}
		if m.State() != Trusted {
			t.Fatalf("after a clean burst: %v", m.State())
		}
	}
	m.Doubtful(at(300), 1, slow, [32]byte{})
	m.Fail(at(301), 2, soft)
	if m.State() != Suspect || m.Verdict().Failures != 1 {
		t.Errorf("the first failure: %v, %d", m.State(), m.Verdict().Failures)
	}
	if c := m.Doubtful(at(302), 3, slow, [32]byte{}); c != nil {
		t.Errorf("a suspect is doubted: %v", c)
	}
	m.Fail(at(303), 4, soft)
	if m.State() != Quarantined {
		t.Errorf("the second failure: %v", m.State())
	}
}
