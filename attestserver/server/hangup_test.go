package server_test

import (
	"testing"
	"time"

	portcullisv1 "portcullis/api/portcullis/v1"
)

// Who hangs up after each answer and comes back before the verdict ends would
// choose when it is asked next. Hanging up is a failure, and the second one is
// a quarantine.
func TestInvariant06_HangingUpBetweenQuestionsIsAFailure(t *testing.T) {
	l := newLab(t)
	l.mean = 20 * time.Second // no question comes by itself between the answer and the end of the link
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	stop := l.agent(sid, key)
	at, _ := l.awaitState(0, "trusted")
	stop()
	at, _ = l.awaitState(at, "suspect")
	if n := l.verdict().Failures; n != 1 {
		t.Fatalf("%d failures after one hang-up", n)
	}
	stop = l.agent(sid, key)
	at, _ = l.awaitState(at+1, "trusted") // the burst was clean
	stop()
	l.awaitState(at+1, "quarantined")
	if s := l.verdict(); s.State != portcullisv1.TrustState_TRUST_STATE_QUARANTINED {
		t.Errorf("after the second hang-up: %v, %d failures", s.State, s.Failures)
	}
}

// Who can make attestd fall over must not be forgiven by it: a fatal finding
// before the restart and one after it are two.
func TestInvariant06_RestartForgivesNoFailure(t *testing.T) {
	l := newLab(t)
	l.mean = 20 * time.Second
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	stop := l.agent(sid, key)
	at, _ := l.awaitState(0, "trusted")
	stop()
	l.awaitState(at, "suspect")
	l.stop()
	l.machine.set("procs", "tampered")
	l.start()
	l.agent(sid, key)
	if _, e := l.await(0, "verdict", map[string]any{"state": "quarantined"}); e["state"] != "quarantined" {
		t.Fatal(e)
	}
	if n := l.verdict().Failures; n != 1 {
		t.Errorf("%d failures counted since the restart: one is enough after the one before it", n)
	}
}

// One stall of an honest PC is one failure: while it may still be at the late
// answer it is not asked again, since that answer would be late as well.
func TestOneStallIsOneFailure(t *testing.T) {
	l := newLab(t)
	l.deadline = time.Second
	l.pxed.open(sid)
	l.start()
	p := l.puppet(sid, newKey(t))
	p.send(p.evidence(p.challenge()))
	at, _ := l.awaitState(0, "trusted")
	late := p.challenge()
	at, _ = l.awaitState(at, "suspect")
	time.Sleep(600 * time.Millisecond)
	if _, e, _ := l.events.find(at+1, "challenge", nil); e != nil {
		t.Error("asked again during the stall")
	}
	p.send(p.evidence(late))
	for l.verdict().State != portcullisv1.TrustState_TRUST_STATE_TRUSTED {
		p.send(p.evidence(p.challenge()))
		time.Sleep(20 * time.Millisecond)
	}
	if n := l.verdict().Failures; n != 1 {
		t.Errorf("%d failures for one stall", n)
	}
}
