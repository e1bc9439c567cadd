package server_test

import (
	"testing"
	"time"
)

// The tier rises when the root of trust has been judged, is told by an event of its
// own, and falls when that fails.
func TestInvariant10_TierFollowsWhatWasJudged(t *testing.T) {
	l := newLab(t)
	l.names = append(l.names, "root")
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	at, e := l.await(0, "verdict", map[string]any{"reason": "tier-changed"})
	if e["tier"] != "T1" || e["state"] != "trusted" || e["from"] != "trusted" {
		t.Errorf("%v", e)
	}
	l.await(0, "enrol", map[string]any{"reference": "root"})
	shows := func(tier string) {
		t.Helper()
		for end := time.Now().Add(patience); l.verdict().Tier != tier; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the status never showed tier %s", tier)
			}
		}
	}
	shows("T1")
	l.machine.set("root", "tampered")
	if _, e := l.awaitState(at, "quarantined"); e["tier"] != "T0" {
		t.Errorf("tier %v after its root of trust failed", e["tier"])
	}
	shows("T0")
}
