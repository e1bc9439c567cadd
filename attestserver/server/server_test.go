package server_test

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/reference"
)

func TestHonestPCIsTrustedAndStaysSo(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	at, e := l.awaitState(0, "trusted")
	if e["tier"] != "T0" || e["posture"] != "none" || e["session"] != sid {
		t.Errorf("verdict %v", e)
	}
	for i := range 20 {
		at, _ = l.await(at+1, "evidence", nil)
		if s := l.verdict().State; s != portcullisv1.TrustState_TRUST_STATE_TRUSTED {
			t.Fatalf("after %d answers: %v", i, s)
		}
	}
	if p := l.gatewayd.last(); p.Phase != portcullisv1.Phase_PHASE_RUN || p.Session != sid || p.TtlMs <= 0 {
		t.Errorf("gatewayd was told %v", p)
	}
	if _, f, _ := l.events.find(0, "finding", nil); f != nil {
		t.Errorf("a finding on an honest PC: %v", f)
	}
}

func TestFirstBootOfAnImageTakesReferences(t *testing.T) {
	l := newLab(t)
	l.enrol = true
	l.pxed.open(sid)
	l.start()
	stop := l.agent(sid, newKey(t))
	l.awaitState(0, "enrolling")
	l.await(0, "enrol", map[string]any{"reference": "ktext"})
	l.awaitState(0, "trusted")
	if w := l.verdict().Warnings; len(w) == 0 {
		t.Error("the verdict does not warn that references were taken on this boot")
	}
	// The next boot is held against them, without a warning.
	stop()
	at := l.events.count()
	l.pxed.open(sid2)
	l.awaitState(at, "unknown")
	l.agent(sid2, newKey(t))
	l.awaitState(at, "trusted")
	if _, e, _ := l.events.find(at, "enrol", nil); e != nil {
		t.Errorf("enrolled again: %v", e)
	}
	if w := l.verdict().Warnings; len(w) != 0 {
		t.Errorf("warnings of the boot before: %q", w)
	}
}

func TestTamperedPCIsQuarantinedWithinThreeChallenges(t *testing.T) {
	for _, probe := range []string{"boot", "procs", "net", "ktext"} {
		t.Run(probe, func(t *testing.T) {
			l := newLab(t)
			l.pxed.open(sid)
			l.start()
			l.agent(sid, newKey(t))
			l.awaitState(0, "trusted")
			l.machine.set(probe, "tampered")
			from := l.events.count()
			_, before := l.await(from, "evidence", nil)
			_, e := l.await(from, "finding", map[string]any{"reason": probe + "-wrong"})
			l.awaitState(from, "suspect")
			end, _ := l.awaitState(from, "quarantined")
			_, last := l.await(end-2, "finding", map[string]any{"reason": probe + "-wrong"})
			if asked := last["sequence"].(float64) - before["sequence"].(float64); asked > 3 {
				t.Errorf("took %v challenges, first finding %v", asked, e)
			}
			l.awaitPhase(portcullisv1.Phase_PHASE_QUARANTINE)
			// Cleaning up does not bring trust back.
			l.machine.set(probe, "good")
			at := end
			for range 6 {
				at, _ = l.await(at+1, "evidence", nil)
			}
			if s := l.verdict().State; s != portcullisv1.TrustState_TRUST_STATE_QUARANTINED {
				t.Errorf("state %v after cleaning up", s)
			}
		})
	}
}

func (l *lab) awaitPhase(p portcullisv1.Phase) {
	l.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if last := l.gatewayd.last(); last != nil && last.Phase == p {
			return
		}
	}
	l.t.Fatalf("gatewayd was not told %v but %v", p, l.gatewayd.last())
}

func TestOneFailureIsForgivenAfterACleanBurst(t *testing.T) {
	l := newLab(t)
	l.mean = time.Second // so that the burst stands out
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	at, _ := l.awaitState(0, "trusted")
	l.machine.setOnce("net", "tampered")
	at, _ = l.awaitState(at, "suspect")
	end, e := l.awaitState(at, "trusted")
	if e["reason"] != "burst-clean" {
		t.Errorf("reason %v", e["reason"])
	}
	burst := 0
	for i := at; i < end; i++ {
		if _, m, _ := l.events.find(i, "challenge", nil); m != nil {
			burst++
			i, _, _ = l.events.find(i, "challenge", nil)
		}
	}
	if burst < 3 {
		t.Errorf("a burst of %d", burst)
	}
}

func TestInvariant06_RestartBeginsAtUnknownAndRecovers(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	stop := l.agent(sid, key)
	l.awaitState(0, "trusted")
	stop()
	l.stop()
	l.start()
	if s := l.verdict().State; s != portcullisv1.TrustState_TRUST_STATE_UNKNOWN {
		t.Fatalf("after a restart: %v", s)
	}
	l.agent(sid, key)
	l.await(0, "agent.claimed", map[string]any{"resumed": true})
	l.awaitState(0, "trusted")
	if l.pxed.claims != 1 {
		t.Errorf("%d claims at pxed, a resumed session is no new claim", l.pxed.claims)
	}
}

func TestInvariant06_QuarantineOutlivesARestart(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	stop := l.agent(sid, key)
	l.awaitState(0, "trusted")
	l.machine.set("procs", "tampered")
	l.awaitState(0, "quarantined")
	stop()
	l.stop()
	l.machine.set("procs", "good")
	l.start()
	l.agent(sid, key)
	l.awaitState(0, "quarantined")
	at, _ := l.await(0, "evidence", nil)
	l.await(at+1, "evidence", nil)
	if s := l.verdict().State; s != portcullisv1.TrustState_TRUST_STATE_QUARANTINED {
		t.Errorf("state %v", s)
	}
}

func TestInvariant06_SilenceEndsTrust(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	stop := l.agent(sid, newKey(t))
	at, _ := l.awaitState(0, "trusted")
	stop()
	for {
		// A challenge may have been open: then it goes through suspect.
		var e map[string]any
		at, e = l.await(at+1, "verdict", nil)
		if e["state"] == "unknown" {
			if e["reason"] != "verdict-expired" {
				t.Errorf("reason %v", e["reason"])
			}
			return
		}
	}
}

func TestInvariant04_NewBootEndsTrustAtOnce(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	at, _ := l.awaitState(0, "trusted")
	l.pxed.open(sid2)
	_, e := l.awaitState(at, "unknown")
	if e["session"] != sid2 || e["reason"] != "session-new" {
		t.Errorf("verdict %v", e)
	}
}

func TestInvariant05_SecondClaimQuarantines(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	l.agent(sid, newKey(t))
	l.await(0, "agent.refused", map[string]any{"reason": "claim-double"})
	_, e := l.awaitState(0, "quarantined")
	if e["reason"] != "session-void" {
		t.Errorf("verdict %v", e)
	}
	l.awaitPhase(portcullisv1.Phase_PHASE_QUARANTINE)
}

func TestQuarantineReachesAGatewaydThatWasDown(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	l.gatewayd.breakWith(connect.CodeUnavailable)
	l.machine.set("boot", "tampered")
	l.awaitState(0, "quarantined")
	l.await(0, "gatewayd.unreachable", nil)
	l.gatewayd.breakWith(0)
	l.awaitPhase(portcullisv1.Phase_PHASE_QUARANTINE)
	l.await(0, "gatewayd.back", nil)
}

// gatewayd was killed when it had answered and not yet written: it comes back at attest.
func TestQuarantineReachesAGatewaydThatForgotIt(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	l.machine.set("boot", "tampered")
	l.awaitState(0, "quarantined")
	at, _ := l.await(0, "quarantine.enforced", map[string]any{"session": sid})
	l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Phase: portcullisv1.Phase_PHASE_ATTEST, Carrier: true})
	l.await(at+1, "quarantine.enforced", map[string]any{"session": sid, "reason": "quarantine-kept"})
}

// The Pi lost its power, and both disks what was answered last: gatewayd gives the session no
// run any more, and attestd, which knows of nothing, believes it no more either.
func TestAttack_SessionThatGatewaydKeepsShutIsNotTrusted(t *testing.T) {
	l := newLab(t)
	l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Phase: portcullisv1.Phase_PHASE_QUARANTINE, Carrier: true})
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.await(0, "verdict", map[string]any{"session": sid, "state": "quarantined", "reason": "quarantine-gateway"})
	at := l.events.count()
	l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid2, Phase: portcullisv1.Phase_PHASE_ATTEST, Carrier: true})
	l.pxed.open(sid2)
	l.agent(sid2, newKey(t))
	l.awaitState(at, "trusted")
}

func TestAnotherCPUIsAFinding(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	stop := l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	stop()
	l.machine.class = "x86.6.7.1"
	at := l.events.count()
	l.pxed.open(sid2)
	l.awaitState(at, "unknown")
	l.agent(sid2, newKey(t))
	l.await(at, "finding", map[string]any{"reason": "cpu-class-changed"})
	l.awaitState(at, "quarantined")
}

// Other microcode alone is for the fingerprint to judge, between boots; within a
// session it cannot change.
func TestOtherMicrocodeIsNoOtherCPU(t *testing.T) {
	l := newLab(t)
	l.machine.class = "genuineintel-6.158.10-f0-0123456789ab-smp"
	l.pxed.open(sid)
	l.start()
	stop := l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	stop()
	l.machine.class = "genuineintel-6.158.10-f4-ba9876543210-smp"
	at := l.events.count()
	l.pxed.open(sid2)
	l.awaitState(at, "unknown")
	l.agent(sid2, newKey(t))
	at, _ = l.awaitState(at, "trusted")
	if _, f, _ := l.events.find(0, "finding", map[string]any{"reason": "cpu-class-changed"}); f != nil {
		t.Errorf("%v", f)
	}
	l.machine.mu.Lock()
	l.machine.class = "genuineintel-6.158.10-f8-ba9876543210-smp"
	l.machine.mu.Unlock()
	l.await(at, "finding", map[string]any{"reason": "cpu-class-changed"})
}

func TestProbeThatFailsOrPanicsCostsOneTypedFinding(t *testing.T) {
	for _, how := range []string{"error", "panic"} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			l.pxed.open(sid)
			l.start()
			l.agent(sid, newKey(t))
			at, _ := l.awaitState(0, "trusted")
			l.machine.set("net", how)
			l.await(at, "finding", map[string]any{"reason": "probe-error", "probe": "net"})
			l.machine.set("net", "good")
			l.await(at, "evidence", nil)
		})
	}
}

// What is wrong elsewhere must not become the reference of later boots.
func TestTamperedFirstBootEnrolsNothing(t *testing.T) {
	l := newLab(t)
	l.enrol = true
	l.machine.set("procs", "tampered")
	l.pxed.open(sid)
	l.start()
	stop := l.agent(sid, newKey(t))
	l.awaitState(0, "quarantined")
	stop()
	if _, e, _ := l.events.find(0, "enrol", nil); e != nil {
		t.Errorf("took a reference: %v", e)
	}
	refs, err := reference.Open(filepath.Join(l.dir, "references"))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"ktext", "cpu-class"} {
		if keys, err := refs.Keys(kind); err != nil || len(keys) != 0 {
			t.Errorf("%s: %v, %v", kind, keys, err)
		}
	}
}

// The clock of a Pi jumps back when it first hears of the time: a newer session
// is known by its news, not by its date.
func TestNewSessionIsHeardThoughTheClockJumpedBack(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	stop := l.agent(sid, newKey(t))
	at, _ := l.awaitState(0, "trusted")
	stop()
	l.pxed.mu.Lock()
	l.pxed.skew = -time.Hour
	l.pxed.mu.Unlock()
	l.pxed.open(sid2)
	l.await(at, "verdict", map[string]any{"state": "unknown", "session": sid2})
	l.agent(sid2, newKey(t))
	l.await(at, "verdict", map[string]any{"state": "trusted", "session": sid2})
}

func TestStaleNewsOfAnOlderSessionChangesNothing(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.await(0, "verdict", map[string]any{"session": sid})
	l.pxed.open(sid2)
	l.agent(sid2, newKey(t))
	at, _ := l.awaitState(0, "trusted")
	l.pxed.mu.Lock()
	for _, state := range []portcullisv1.SessionState{portcullisv1.SessionState_SESSION_STATE_SERVED,
		portcullisv1.SessionState_SESSION_STATE_VOID, portcullisv1.SessionState_SESSION_STATE_ENDED} {
		for _, w := range l.pxed.watchers {
			w <- &portcullisv1.Session{Id: sid, State: state}
		}
	}
	l.pxed.mu.Unlock()
	for range 3 {
		at, _ = l.await(at+1, "evidence", nil)
	}
	if v := l.verdict(); v.State != portcullisv1.TrustState_TRUST_STATE_TRUSTED || v.Session != sid2 {
		t.Errorf("%v of %s", v.State, v.Session)
	}
}

// Whoever reads a verdict, wherever, reads beside it how little it may mean.
func TestInvariant10_EveryVerdictSaysItsTierAndPosture(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	bounded := func(tier, posture any) {
		t.Helper()
		if tier != "T0" || posture != "none" {
			t.Errorf("tier %v, posture %v", tier, posture)
		}
	}
	v := l.verdict()
	bounded(v.Tier, v.Posture)
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	v = l.verdict()
	bounded(v.Tier, v.Posture)
	l.machine.set("boot", "tampered")
	l.awaitState(0, "quarantined")
	v = l.verdict()
	bounded(v.Tier, v.Posture)
	for at := 0; ; at++ {
		i, e, _ := l.events.find(at, "verdict", nil)
		if e == nil {
			break
		}
		bounded(e["tier"], e["posture"])
		at = i
	}
	l.stop()
	entries := 0
	if err := l.log().Audit(func(_ int64, b []byte) error {
		entries++
		var e map[string]any
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		bounded(e["tier"], e["posture"])
		return nil
	}); err != nil || entries < 3 {
		t.Errorf("%d entries, %v", entries, err)
	}
}
