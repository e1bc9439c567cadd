package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"

	"portcullis/agent/channel"
	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
)

// relay is a man in the middle with a TLS key of its own on the gateway's side
// and everything the agent says on the other.
func TestRelayWithItsOwnTLSCannotSatisfyTheBinding(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	// The relay even has the gateway's key towards the agent, the worst case
	// short of the gateway itself: the agent believes it and signs.
	key := newKey(t)
	victim := relay(t, l, key)
	_, err := channel.Dial(context.Background(), victim, l.facts(sid), key)
	var refused *channel.RefusedError
	if !errors.As(err, &refused) || refused.Reason != protocol.ClaimKey {
		t.Fatalf("got %v, want %s", err, protocol.ClaimKey)
	}
	l.await(0, "agent.refused", map[string]any{"reason": protocol.ClaimKey})
}

// Even a relay that stole the agent's key cannot pass on a claim that the
// agent signed for another connection.
func TestRelayWithTheAgentsKeyCannotSatisfyTheBinding(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	victim := relayAs(t, l, key)
	_, err := channel.Dial(context.Background(), victim, l.facts(sid), key)
	var refused *channel.RefusedError
	if !errors.As(err, &refused) || refused.Reason != protocol.ClaimSignature {
		t.Fatalf("got %v, want %s", err, protocol.ClaimSignature)
	}
}

func relay(t *testing.T, l *lab, _ *claim.Key) string { return relayAs(t, l, newKey(t)) }

// relayAs terminates TLS on both sides, with key towards the gateway.
func relayAs(t *testing.T, l *lab, key *claim.Key) string {
	t.Helper()
	inside, err := protocol.ServerConfig(l.image.GatewayKey)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := protocol.ClientConfig(key.Private(), l.facts(sid).Gateway)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", inside)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		a, err := ln.Accept()
		if err != nil {
			return
		}
		defer a.Close()
		b, err := tls.Dial("tcp", l.address, outside)
		if err != nil {
			return
		}
		defer b.Close()
		go io.Copy(b, a)
		io.Copy(a, b)
	}()
	return ln.Addr().String()
}

func TestWrongGatewayKeyEndsTheHandshake(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	facts := l.facts(sid)
	facts.Gateway = newKey(t).Public()
	if _, err := channel.Dial(context.Background(), l.address, facts, newKey(t)); !errors.Is(err, protocol.ErrPin) {
		t.Fatalf("got %v, want %v", err, protocol.ErrPin)
	}
	l.await(0, "agent.refused", map[string]any{"reason": "channel-tls"})
}

func TestRefusedClaims(t *testing.T) {
	cases := []struct {
		attack, reason string
		facts          func(f *claim.Facts)
	}{
		{"session that pxed does not know", protocol.ClaimSession, func(f *claim.Facts) { f.Session = sid2 }},
		{"another image", protocol.ClaimImage, func(f *claim.Facts) { f.ManifestDigest[0] ^= 1 }},
		{"another root filesystem", protocol.ClaimImage, func(f *claim.Facts) { f.RootHash[0] ^= 1 }},
		{"no session id", protocol.ClaimMalformed, func(f *claim.Facts) { f.Session = "../../etc/passwd" }},
	}
	for _, c := range cases {
		t.Run(c.attack, func(t *testing.T) {
			l := newLab(t)
			l.pxed.open(sid)
			l.start()
			facts := l.facts(sid)
			c.facts(&facts)
			_, err := channel.Dial(context.Background(), l.address, facts, newKey(t))
			var refused *channel.RefusedError
			if !errors.As(err, &refused) || refused.Reason != c.reason {
				t.Fatalf("got %v, want %s", err, c.reason)
			}
			if l.pxed.claims != 0 {
				t.Error("pxed was asked to decide")
			}
		})
	}
}
