package server_test

import (
	"testing"
)

// A pxed that rests is not woken by an agent that connects anew: of the session that pxed
// told of last nothing has become since. An attestd that was restarted has been told
// nothing, and wakes it.
func TestRestingPxedIsNotWoken(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	stop := l.agent(sid, key)
	at, _ := l.awaitState(0, "trusted")
	stop()
	set := func(rests bool) (woken int) {
		l.pxed.mu.Lock()
		defer l.pxed.mu.Unlock()
		l.pxed.rests = rests
		return l.pxed.woken
	}
	before := set(true)
	stop = l.agent(sid, key)
	at, _ = l.await(at, "agent.claimed", map[string]any{"resumed": true})
	if after := set(true); after != before || l.pxed.claims != 1 {
		t.Errorf("pxed was woken by %d questions, %d claims", after-before, l.pxed.claims)
	}
	// Another key does not get by while it rests: that is a claim, which pxed decides.
	stop()
	l.agent(sid, newKey(t))
	l.await(at, "agent.refused", map[string]any{"reason": "claim-double"})
	l.stop()
	l.start()
	before = set(true)
	l.agent(sid, key)
	l.await(0, "agent.refused", nil)
	if after := set(true); after == before {
		t.Error("an attestd that knows nothing did not ask pxed")
	}
}
