// Package challenge composes what the PC is asked next and checks that an
// answer answers exactly that: fresh, whole, in order, on this connection, by
// the claim's key. What the answer says is judged by the Expectations.
// attestserver/server is the only one that may call it.
package challenge

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"

	"portcullis/attestserver/protocol"
)

// core are the ops of which every challenge holds at least one.
var core = []string{"ktext", "procs", "boot"}

// leaveOut is the chance (of 256) that an op is not asked, provided it was
// asked the time before. So the PC cannot know what comes, and yet no op is
// missing twice in a row: what any op can see is seen by the second challenge.
const leaveOut = 64

// Want says what the next challenge must be.
type Want struct {
	State        *protocol.ImageState
	Expectations []protocol.Expectation
	Full         bool     // ask everything
	Must         []string // ask these in any case
	Enrol        []string // take references of these; ask nothing else unless Full
	Deadline     time.Duration
	Random       io.Reader // crypto/rand outside of tests
	Nonces       [][]byte  // of those who want their own in the question
}

// Asked is one op that was asked.
type Asked struct {
	protocol.Expectation
	Params []byte
	Enrol  bool
	Key    protocol.OpKey
}

// Sent is a challenge that is open.
type Sent struct {
	Message *protocol.Challenge
	Ops     []Asked
	Full    bool     // holds every op, none of them to take a reference
	Enrol   bool     // takes references
	Own     [32]byte // what was drawn: the nonce, or what the others' were folded into

	id      [16]byte
	digest  [32]byte
	peer    Peer
	chunks  [][]byte
	total   uint64
	arrived []uint64
}

// Peer is the agent's end: what an answer must be bound to.
type Peer struct {
	Session string
	Key     ed25519.PublicKey
	Binding protocol.Binding
}

// Chooser remembers what was left out, so that it is asked next. One Chooser
// serves one boot session.
type Chooser struct{ skipped []string }

// Compose draws the next challenge. sequence counts from 1 within the
// connection, head is the evidence chain's head.
func (c *Chooser) Compose(w Want, peer Peer, sequence uint64, head [32]byte) (*Sent, error) {
	chosen, err := c.choose(w)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	var own [32]byte
	if _, err := io.ReadFull(w.Random, id[:]); err != nil {
		return nil, fmt.Errorf("challenge: random source: %w", err)
	}
	if _, err := io.ReadFull(w.Random, own[:]); err != nil {
		return nil, fmt.Errorf("challenge: random source: %w", err)
	}
	nonce := own
	if len(w.Nonces) > 0 {
		nonce = protocol.FoldNonces(own, w.Nonces)
	}
	s := &Sent{
		id: id, peer: peer, Own: own, Enrol: len(w.Enrol) > 0,
		Full: len(w.Enrol) == 0 && len(chosen) == len(w.Expectations),
		Message: &protocol.Challenge{
			Id: id[:], Session: peer.Session, Sequence: sequence, Nonce: nonce[:],
			DeadlineMs: w.Deadline.Milliseconds(), Previous: head[:],
		},
		chunks: make([][]byte, len(chosen)), arrived: make([]uint64, len(chosen)),
	}
	keys, err := protocol.NewOpKeys(nonce, peer.Binding, id)
	if err != nil {
		return nil, fmt.Errorf("challenge: keys: %w", err)
	}
	for i, e := range chosen {
		a, err := ask(e, w, slices.Contains(w.Enrol, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("challenge: parameters of %s: %w", e.Name(), err)
		}
		if a.Key, err = keys.Key(uint32(i)); err != nil {
			return nil, fmt.Errorf("challenge: key of %s: %w", e.Name(), err)
		}
		s.Ops = append(s.Ops, a)
		s.Message.Ops = append(s.Message.Ops, &protocol.Op{Name: e.Name(), Params: a.Params, Enrol: a.Enrol})
	}
	if err := s.Message.Check(); err != nil {
		return nil, err
	}
	s.digest = protocol.ChallengeDigest(s.Message)
	return s, nil
}

func ask(e protocol.Expectation, w Want, enrol bool) (Asked, error) {
	a := Asked{Expectation: e, Enrol: enrol}
	var err error
	if enrol {
		en, ok := e.(protocol.Enroller)
		if !ok {
			return a, fmt.Errorf("takes no reference")
		}
		a.Params, err = en.EnrolParams(w.Random, w.State)
	} else {
		a.Params, err = e.Params(w.Random, w.State)
	}
	return a, err
}

// choose draws the ops and their order.
func (c *Chooser) choose(w Want) ([]protocol.Expectation, error) {
	all := slices.Clone(w.Expectations)
	if err := shuffle(w.Random, all); err != nil {
		return nil, err
	}
	if len(w.Enrol) > 0 && !w.Full {
		return keep(all, func(name string) bool { return slices.Contains(w.Enrol, name) }), nil
	}
	var skipped []string
	draw := make([]byte, len(all))
	if _, err := io.ReadFull(w.Random, draw); err != nil {
		return nil, fmt.Errorf("challenge: random source: %w", err)
	}
	for i, e := range all {
		forced := w.Full || slices.Contains(w.Must, e.Name()) || slices.Contains(c.skipped, e.Name())
		if !forced && draw[i] < leaveOut {
			skipped = append(skipped, e.Name())
		}
	}
	asked := func(e protocol.Expectation) bool { return !slices.Contains(skipped, e.Name()) }
	if !slices.ContainsFunc(all, func(e protocol.Expectation) bool { return isCore(e) && asked(e) }) {
		// The order is random, so the first one of them in it is a fair choice.
		if i := slices.IndexFunc(all, isCore); i >= 0 {
			skipped = slices.DeleteFunc(skipped, func(n string) bool { return n == all[i].Name() })
		}
	}
	if len(skipped) == len(all) {
		skipped = nil
	}
	c.skipped = skipped
	return keep(all, func(name string) bool { return !slices.Contains(skipped, name) }), nil
}

func isCore(e protocol.Expectation) bool { return slices.Contains(core, e.Name()) }

func keep(all []protocol.Expectation, want func(string) bool) []protocol.Expectation {
	var kept []protocol.Expectation
	for _, e := range all {
		if want(e.Name()) {
			kept = append(kept, e)
		}
	}
	return kept
}

// shuffle is Fisher-Yates with unbiased draws.
func shuffle(r io.Reader, s []protocol.Expectation) error {
	for i := len(s) - 1; i > 0; i-- {
		j, err := below(r, uint32(i+1))
		if err != nil {
			return err
		}
		s[i], s[j] = s[j], s[i]
	}
	return nil
}

// below draws uniformly from 0..n-1 by rejection.
func below(r io.Reader, n uint32) (uint32, error) {
	limit := ^uint32(0) - ^uint32(0)%n
	for {
		var b [4]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, fmt.Errorf("challenge: random source: %w", err)
		}
		if v := binary.BigEndian.Uint32(b[:]); v < limit {
			return v % n, nil
		}
	}
}
