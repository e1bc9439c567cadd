package server_test

import (
	"testing"

	"portcullis/attestserver/protocol"
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

// A claim is held while pxed is not there, of an agent that attestd knows as of one that it
// does not: the PC is not refused for what the Pi does.
func TestClaimIsHeldUntilPxedIsThere(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	away := func(n int) {
		l.pxed.mu.Lock()
		defer l.pxed.mu.Unlock()
		l.pxed.away = n
	}
	away(3) // the first claim
	stop := l.agent(sid, key)
	at, _ := l.awaitState(0, "trusted")
	stop()
	away(6) // it connects anew: each time two questions
	stop = l.agent(sid, key)
	l.await(at, "agent.claimed", map[string]any{"resumed": true})
	stop()
	never := func() {
		if _, refused, _ := l.events.find(0, "agent.refused", map[string]any{"reason": protocol.ClaimUnavailable}); refused != nil {
			t.Errorf("refused: %v", refused)
		}
	}
	never()
	// attestd knows nothing, and pxed's answer to the claim is lost.
	l.stop()
	l.pxed.open(sid2)
	l.start()
	l.pxed.mu.Lock()
	l.pxed.loses = true
	l.pxed.mu.Unlock()
	l.agent(sid2, newKey(t))
	l.await(0, "agent.claimed", map[string]any{"session": sid2})
	never()
	l.pxed.mu.Lock()
	defer l.pxed.mu.Unlock()
	if l.pxed.away > 0 || l.pxed.loses || l.pxed.claims != 2 {
		t.Errorf("%d questions and %t answers were to fail yet; %d claims", l.pxed.away, l.pxed.loses, l.pxed.claims)
	}
}
