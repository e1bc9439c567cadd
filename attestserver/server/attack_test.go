package server_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"portcullis/agent/channel"
	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
	"portcullis/images/manifest"
)

// puppet is an agent that the test plays: it holds a granted connection.
type puppet struct {
	*channel.Conn
	t   testing.TB
	l   *lab
	key *claim.Key
}

func (l *lab) puppet(session string, key *claim.Key) *puppet {
	l.t.Helper()
	c, err := channel.Dial(context.Background(), l.address, l.facts(session), key)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return &puppet{c, l.t, l, key}
}

func (p *puppet) challenge() *protocol.Challenge {
	p.t.Helper()
	m, err := p.Receive(protocol.MaxFrame)
	if err != nil {
		p.t.Fatal(err)
	}
	if m.GetChallenge() == nil {
		p.t.Fatalf("got %v instead of a challenge", m)
	}
	return m.GetChallenge()
}

// evidence answers c as an honest agent on a good machine would.
func (p *puppet) evidence(c *protocol.Challenge) *protocol.Evidence {
	p.t.Helper()
	now, err := claim.Uptime()
	if err != nil {
		p.t.Fatal(err)
	}
	e := &protocol.Evidence{Id: c.Id, Sequence: c.Sequence, Previous: c.Previous, StartedMs: now.Milliseconds(), FinishedMs: now.Milliseconds()}
	for i, op := range c.Ops {
		key, err := protocol.DeriveOpKey([32]byte(c.Nonce), p.Binding, [16]byte(c.Id), uint32(i))
		if err != nil {
			p.t.Fatal(err)
		}
		d := key.Digest(op.Name, op.Params, []byte("good"))
		r := &protocol.OpResult{Name: op.Name, Digest: d[:]}
		if op.Name == "hw" {
			r.Data, r.DataSize = []byte(p.l.machine.class), uint64(len(p.l.machine.class))
		}
		e.Results = append(e.Results, r)
	}
	p.sign(c, e)
	return e
}

func (p *puppet) sign(c *protocol.Challenge, e *protocol.Evidence) {
	data := make([][]byte, len(e.Results))
	for i, r := range e.Results {
		data[i] = r.Data
	}
	e.Signature = ed25519.Sign(p.key.Private(), protocol.EvidenceTranscript(protocol.ChallengeDigest(c), p.Binding, e, data))
}

func (p *puppet) send(e *protocol.Evidence) {
	p.t.Helper()
	if err := p.Send(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: e}}); err != nil {
		p.t.Fatal(err)
	}
}

// trusted brings a fresh lab to trust with a puppet.
func trusted(t testing.TB) (*lab, *puppet) {
	t.Helper()
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	p := l.puppet(sid, newKey(t))
	p.send(p.evidence(p.challenge()))
	l.awaitState(0, "trusted")
	return l, p
}

// Every way to answer wrongly has its own reason, and none keeps trust.
func TestInvariant06_RefusedAnswers(t *testing.T) {
	cases := []struct {
		attack, reason string
		play           func(p *puppet)
	}{
		{"replay of an answer", protocol.EvidenceReplayed, func(p *puppet) {
			e := p.evidence(p.challenge())
			p.send(e)
			p.send(e)
		}},
		{"answer of an earlier challenge under a new id", protocol.EvidenceSignature, func(p *puppet) {
			old := p.evidence(p.challenge())
			p.send(old)
			c := p.challenge()
			e := p.evidence(c)
			e.Signature = old.Signature
			p.send(e)
		}},
		{"answer to a challenge that was never asked", protocol.EvidenceUnknown, func(p *puppet) {
			c := p.challenge()
			c.Id[0] ^= 1
			p.send(p.evidence(c))
		}},
		{"wrong sequence number", protocol.EvidenceOrder, func(p *puppet) {
			c := p.challenge()
			e := p.evidence(c)
			e.Sequence++
			p.sign(c, e)
			p.send(e)
		}},
		{"broken chain", protocol.EvidenceChain, func(p *puppet) {
			c := p.challenge()
			e := p.evidence(c)
			e.Previous = append([]byte(nil), e.Previous...)
			e.Previous[0] ^= 1
			p.sign(c, e)
			p.send(e)
		}},
		{"results in another order", protocol.EvidenceIncomplete, func(p *puppet) {
			c := p.challenge()
			for len(c.Ops) < 2 {
				p.send(p.evidence(c))
				c = p.challenge()
			}
			e := p.evidence(c)
			e.Results[0], e.Results[1] = e.Results[1], e.Results[0]
			p.sign(c, e)
			p.send(e)
		}},
		{"a result left out", protocol.EvidenceIncomplete, func(p *puppet) {
			c := p.challenge()
			for len(c.Ops) < 2 {
				p.send(p.evidence(c))
				c = p.challenge()
			}
			e := p.evidence(c)
			e.Results = e.Results[1:]
			p.sign(c, e)
			p.send(e)
		}},
		{"data of another size than announced", protocol.EvidenceMalformed, func(p *puppet) {
			c := p.challenge()
			e := p.evidence(c)
			e.Results[0].DataSize += 1
			p.sign(c, e)
			p.send(e)
		}},
		{"fields of wrong sizes", protocol.EvidenceMalformed, func(p *puppet) {
			e := p.evidence(p.challenge())
			e.Results[0].Digest = e.Results[0].Digest[:31]
			p.send(e)
		}},
		{"a claim in the place of evidence", protocol.EvidenceMalformed, func(p *puppet) {
			p.challenge()
			p.Send(&protocol.Message{Body: &protocol.Message_Claim{Claim: &protocol.Claim{}}})
		}},
		{"the gateway's own challenge sent back", protocol.EvidenceMalformed, func(p *puppet) {
			p.Send(&protocol.Message{Body: &protocol.Message_Challenge{Challenge: p.challenge()}})
		}},
		{"more time than has passed", protocol.EvidenceTime, func(p *puppet) {
			c := p.challenge()
			e := p.evidence(c)
			e.FinishedMs += 60_000
			p.sign(c, e)
			p.send(e)
		}},
		{"chunks beyond the cap", protocol.EvidenceMalformed, func(p *puppet) {
			c := p.challenge()
			p.Send(&protocol.Message{Body: &protocol.Message_Chunk{Chunk: &protocol.Chunk{Id: c.Id, Size: protocol.MaxData + 1, Data: []byte{1}}}})
		}},
		{"chunks with a hole", protocol.EvidenceMalformed, func(p *puppet) {
			c := p.challenge()
			p.Send(&protocol.Message{Body: &protocol.Message_Chunk{Chunk: &protocol.Chunk{Id: c.Id, Size: 100, Offset: 50, Data: []byte{1}}}})
		}},
		{"hanging up instead of answering", protocol.EvidenceMissing, func(p *puppet) {
			p.challenge()
			p.Close()
		}},
		{"signed by another key", protocol.EvidenceSignature, func(p *puppet) {
			c := p.challenge()
			p.key = newKey(p.t)
			p.send(p.evidence(c))
		}},
		{"digest of another connection's key", "boot-wrong", func(p *puppet) {
			for {
				c := p.challenge()
				if i := indexOf(c, "boot"); i >= 0 {
					e := p.evidence(c)
					other := p.Binding
					other[0] ^= 1
					key, err := protocol.DeriveOpKey([32]byte(c.Nonce), other, [16]byte(c.Id), uint32(i))
					if err != nil {
						p.t.Fatal(err)
					}
					d := key.Digest("boot", c.Ops[i].Params, []byte("good"))
					e.Results[i].Digest = d[:]
					p.sign(c, e)
					p.send(e)
					return
				}
				p.send(p.evidence(c))
			}
		}},
	}
	for _, c := range cases {
		t.Run(c.attack, func(t *testing.T) {
			l, p := trusted(t)
			c.play(p)
			at, _ := l.await(0, "finding", map[string]any{"reason": c.reason})
			_, v := l.await(at, "verdict", nil)
			if v["state"] != "suspect" || v["reason"] != c.reason {
				t.Errorf("verdict %v", v)
			}
		})
	}
}

func indexOf(c *protocol.Challenge, op string) int {
	for i, o := range c.Ops {
		if o.Name == op {
			return i
		}
	}
	return -1
}

func TestInvariant06_LateAnswerFailsOnceAndIsNamed(t *testing.T) {
	l := newLab(t)
	l.deadline = time.Second
	l.pxed.open(sid)
	l.start()
	p := l.puppet(sid, newKey(t))
	p.send(p.evidence(p.challenge()))
	at, _ := l.awaitState(0, "trusted")
	c := p.challenge()
	at, v := l.awaitState(at, "suspect")
	if v["reason"] != protocol.EvidenceLate {
		t.Errorf("verdict %v", v)
	}
	p.send(p.evidence(c))
	_, f := l.await(at, "finding", map[string]any{"reason": protocol.EvidenceLate, "class": "info"})
	if f["sequence"] != float64(c.Sequence) {
		t.Errorf("finding %v", f)
	}
	if n := l.verdict().Failures; n != 1 {
		t.Errorf("%d failures for one late answer", n)
	}
	// A second time the same answer is a replay.
	p.send(p.evidence(c))
	l.await(at, "finding", map[string]any{"reason": protocol.EvidenceReplayed})
	l.awaitState(at, "quarantined")
}

func TestInvariant06_SilenceIsFailure(t *testing.T) {
	l := newLab(t)
	l.deadline = 500 * time.Millisecond
	l.pxed.open(sid)
	l.start()
	p := l.puppet(sid, newKey(t))
	p.send(p.evidence(p.challenge()))
	l.awaitState(0, "trusted")
	_, v := l.awaitState(0, "quarantined")
	if v["reason"] != protocol.EvidenceLate {
		t.Errorf("verdict %v", v)
	}
}

// Reconnecting instead of answering gives no new question for free.
func TestInvariant06_HangingUpTwiceQuarantines(t *testing.T) {
	l, p := trusted(t)
	p.challenge()
	p.Close()
	at, _ := l.awaitState(0, "suspect")
	p = l.puppet(sid, p.key)
	p.challenge()
	p.Close()
	l.awaitState(at, "quarantined")
}

// Rubbish at every point of the connection costs one typed reason and nothing else.
func TestInvariant11_RubbishOnTheChannel(t *testing.T) {
	frames := map[string][]byte{
		"truncated head":    {0, 0},
		"truncated frame":   {0, 0, 0, 9, 1, 2},
		"empty frame":       {0, 0, 0, 0},
		"enormous frame":    {0xff, 0xff, 0xff, 0xff},
		"no protobuf":       {0, 0, 0, 3, 0xff, 0xff, 0xff},
		"message of nobody": {0, 0, 0, 3, 0x7a, 1, 0},
	}
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	for name, frame := range frames {
		t.Run(name, func(t *testing.T) {
			from := l.events.count()
			config, err := protocol.ClientConfig(newKey(t).Private(), l.facts(sid).Gateway)
			if err != nil {
				t.Fatal(err)
			}
			c, err := tls.Dial("tcp", l.address, config)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(frame); err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			_, e := l.await(from, "agent.refused", nil)
			if r := e["reason"]; r != protocol.ClaimMalformed && r != protocol.ClaimTimeout {
				t.Errorf("reason %v", r)
			}
		})
	}
	// And the honest PC is still heard.
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
}

func TestInvariant11_RubbishAfterTheClaim(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	p := l.puppet(sid, key)
	p.challenge()
	// A frame that no message decodes from, sent by the claimed agent itself.
	if err := p.Send(&protocol.Message{}); err != nil {
		t.Fatal(err)
	}
	_, f := l.await(0, "finding", nil)
	if f["reason"] != protocol.EvidenceMalformed {
		t.Errorf("finding %v", f)
	}
	l.await(0, "agent.disconnected", nil) // by then it is counted
	if n := l.verdict().Failures; n != 1 {
		t.Errorf("%d failures for one bad frame", n)
	}
}

func TestInvariant11_AFloodOfCallersIsBounded(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	var open []net.Conn
	for range 40 {
		c, err := net.Dial("tcp", l.address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	l.await(0, "agent.refused", map[string]any{"reason": "channel-busy"})
	for _, c := range open {
		c.Close()
	}
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
}

// What answers are held against must be the signed image itself.
func TestChangedRootImageOnThePiIsNoReference(t *testing.T) {
	l := newLab(t)
	f, err := os.OpenFile(filepath.Join(l.image.Dir, manifest.Root), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 4711); err != nil {
		t.Fatal(err)
	}
	f.Close()
	l.pxed.open(sid)
	l.start()
	l.await(0, "image.unreadable", nil)
	_, err = channel.Dial(context.Background(), l.address, l.facts(sid), newKey(t))
	var refused *channel.RefusedError
	if !errors.As(err, &refused) || refused.Reason != protocol.ClaimImage {
		t.Fatalf("got %v, want %s", err, protocol.ClaimImage)
	}
}

// A PC that changed after the first boot is held against what it was then.
func TestLaterBootsChangeNoReference(t *testing.T) {
	l := newLab(t)
	l.enrol = true
	l.pxed.open(sid)
	l.start()
	stop := l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	stop()
	read := func() []byte {
		files, err := filepath.Glob(filepath.Join(l.dir, "references", "ktext", "*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("references %v, %v", files, err)
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	before := read()
	at := l.events.count()
	l.machine.set("ktext", "patched")
	l.pxed.open(sid2)
	l.await(at, "verdict", map[string]any{"session": sid2})
	l.agent(sid2, newKey(t))
	l.await(at, "finding", map[string]any{"reason": "ktext-wrong"})
	l.awaitState(at, "quarantined")
	if string(read()) != string(before) {
		t.Error("the reference has changed")
	}
}
