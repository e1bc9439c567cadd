package server_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"portcullis/agent/channel"
	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/protocol"
)

// An honest PC changes keys all the time and nobody notices: no challenge is
// missed, trust goes on, and the evidence of all connections is one chain.
func TestRekeyCostsNothing(t *testing.T) {
	l := newLab(t)
	l.rekey = 400 * time.Millisecond
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	at, _ := l.awaitState(0, "trusted")
	last := 1.0
	for range 6 {
		var e map[string]any
		at, e = l.await(at+1, "rekey", nil)
		if e["epoch"].(float64) != last+1 {
			t.Fatalf("epoch %v after %v", e["epoch"], last)
		}
		last++
		// On a busy machine the next exchange may come before it: at stays.
		if l.await(at+1, "evidence", nil); l.verdict().State != portcullisv1.TrustState_TRUST_STATE_TRUSTED {
			t.Fatal("no longer trusted")
		}
	}
	if _, f, _ := l.events.find(0, "finding", nil); f != nil {
		t.Errorf("a finding: %v", f)
	}
	if _, f, _ := l.events.find(0, "agent.disconnected", nil); f != nil {
		t.Errorf("the PC was lost: %v", f)
	}
}

// A task that begins brings new keys, as a change of the cable and a notice of the agent do,
// long before it is time for them: by the time alone none would come before the test gives up.
func TestEventsBringNewKeys(t *testing.T) {
	for name, happens := range map[string]func(*lab, *puppet){
		"task": func(l *lab, _ *puppet) {
			l.gatewayd.change(func(s *portcullisv1.GetGatewayStatusResponse) { s.GrantChanges = 1 })
		},
		"carrier": func(l *lab, _ *puppet) {
			l.gatewayd.change(func(s *portcullisv1.GetGatewayStatusResponse) { s.Carrier = false })
		},
		"notice": func(_ *lab, p *puppet) { p.notice("net") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.rekey = 3 * patience / 2 // give or take a quarter
			l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Carrier: true})
			l.pxed.open(sid)
			l.start()
			p := l.puppet(sid, newKey(t))
			asked := make(chan struct{})
			go func() {
				for {
					m, err := p.Receive(protocol.MaxFrame)
					switch {
					case err != nil:
						return
					case m.GetChallenge() != nil:
						p.Send(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: p.evidence(m.GetChallenge())}})
					case m.GetRekey() != nil:
						close(asked)
						return
					}
				}
			}()
			l.awaitState(0, "trusted")
			// attestd must have heard gatewayd's first word, to which the others are compared.
			for l.gatewayd.asked.Load() < 2 {
				time.Sleep(time.Millisecond)
			}
			happens(l, p)
			select {
			case <-asked:
			case <-time.After(patience):
				t.Error("the agent was not asked for a new connection")
			}
		})
	}
}

// After a restart of attestd the agent goes on with the epoch it has.
func TestEpochOutlivesARestart(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	stop := l.agent(sid, key)
	l.awaitState(0, "trusted")
	stop()
	l.stop()
	l.start()
	l.agent(sid, key)
	_, e := l.await(0, "agent.claimed", nil)
	if e["epoch"].(float64) < 2 {
		t.Errorf("epoch %v after a restart", e["epoch"])
	}
	l.awaitState(0, "trusted")
}

// Who copied the agent's key and has not followed its epochs gets nothing, and
// that he tried costs the PC its trust: the key is in two places.
func TestAttack_CopiedKeyWithoutTheEpoch(t *testing.T) {
	l, p := trusted(t)
	copied := p.key.Copy()
	var refused *channel.RefusedError
	if _, err := channel.Dial(context.Background(), l.address, l.facts(sid), copied); !errors.As(err, &refused) || refused.Reason != protocol.ClaimEpoch {
		t.Fatalf("a copied key: %v", err)
	}
	l.await(0, "finding", map[string]any{"reason": protocol.ClaimEpoch, "class": "fatal"})
	l.awaitState(0, "suspect")
	// One who copied all of the agent's memory, but has missed the key exchange after it.
	copied.Advance(protocol.OldEpoch(p.key.Epoch().Number, p.key.Epoch().Key()))
	again, err := channel.Dial(context.Background(), l.address, l.facts(sid), p.key)
	if err != nil {
		t.Fatalf("the PC itself: %v", err)
	}
	defer again.Close()
	q := &puppet{again, t, l, p.key}
	before := l.events.count()
	q.send(q.evidence(q.challenge()))
	l.await(before, "evidence", nil)
	if _, err := channel.Dial(context.Background(), l.address, l.facts(sid), copied); !errors.As(err, &refused) || refused.Reason != protocol.ClaimEpoch {
		t.Fatalf("an epoch that is over: %v", err)
	}
	l.awaitState(0, "quarantined")
}

// A connection's keys alone do not make evidence: its epoch has to be in it.
func TestAttack_EvidenceWithoutTheEpoch(t *testing.T) {
	l, p := trusted(t)
	p.Binding[0] ^= 1 // the binding without the epoch is another value
	p.send(p.evidence(p.challenge()))
	l.await(0, "finding", map[string]any{"reason": protocol.EvidenceSignature})
}

// An agent that keeps its connection for ever is asked, and then counts as failing.
func TestAttack_AgentThatKeepsItsKeys(t *testing.T) {
	l := newLab(t)
	l.rekey = 300 * time.Millisecond
	l.pxed.open(sid)
	l.start()
	p := l.puppet(sid, newKey(t))
	go func() {
		for {
			m, err := p.Receive(protocol.MaxFrame)
			if err != nil {
				return
			}
			if c := m.GetChallenge(); c != nil {
				e := p.evidence(c)
				p.Send(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: e}})
			}
		}
	}()
	l.await(0, "finding", map[string]any{"reason": protocol.EvidenceRekey, "class": "soft"})
	l.awaitState(0, "quarantined")
}
