package challenge

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"time"

	"portcullis/attestserver/protocol"
)

// Error is an answer that is refused; Reason is one of protocol.Evidence*.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) *Error {
	return &Error{reason, fmt.Sprintf(format, args...)}
}

// clockSlack is what the agent's clock may run faster than ours.
const clockSlack = 50 * time.Millisecond

// ID names the challenge.
func (s *Sent) ID() [16]byte { return s.id }

// Chunk takes a piece of an op's data. Pieces of one op come in order, without
// gaps; what they may be in all depends on whether a reference is taken.
func (s *Sent) Chunk(c *protocol.Chunk) error {
	if err := c.Check(); err != nil {
		return refuse(protocol.EvidenceMalformed, "%v", err)
	}
	if !bytes.Equal(c.Id, s.id[:]) || int(c.Index) >= len(s.Ops) {
		return refuse(protocol.EvidenceMalformed, "chunk for op %d of another challenge", c.Index)
	}
	i := int(c.Index)
	limit := uint64(protocol.MaxData)
	if s.Ops[i].Enrol {
		limit = protocol.MaxEnrolData
	}
	switch {
	case c.Size > limit:
		return refuse(protocol.EvidenceMalformed, "%s: %d bytes of data, at most %d", s.Ops[i].Name(), c.Size, limit)
	case s.chunks[i] == nil && s.total+c.Size > protocol.MaxAnswerData:
		return refuse(protocol.EvidenceMalformed, "%d bytes of data in all, at most %d", s.total+c.Size, protocol.MaxAnswerData)
	case s.chunks[i] == nil:
		// The pages are touched as data comes in, not before.
		s.chunks[i] = make([]byte, c.Size)
		s.total += c.Size
	}
	if c.Size != uint64(len(s.chunks[i])) || c.Offset != s.arrived[i] {
		return refuse(protocol.EvidenceMalformed, "%s: chunk at %d of %d, expected %d of %d",
			s.Ops[i].Name(), c.Offset, c.Size, s.arrived[i], len(s.chunks[i]))
	}
	s.arrived[i] += uint64(copy(s.chunks[i][c.Offset:], c.Data))
	return nil
}

// Answer is one op's result that belongs to what was asked.
type Answer struct {
	Asked
	Output  protocol.Output
	Elapsed time.Duration
	Error   string // the agent could not run the op
}

// Accepted is an answer whose origin, freshness and completeness are settled.
type Accepted struct {
	Answers []Answer // in the order asked
	Head    [32]byte // of the evidence chain from now on
}

// Check settles whether e answers this challenge. took is the time between
// sending and the answer's last byte, by our clock. A refusal is an *Error.
func (s *Sent) Check(e *protocol.Evidence, took time.Duration) (*Accepted, error) {
	if err := e.Check(); err != nil {
		return nil, refuse(protocol.EvidenceMalformed, "%v", err)
	}
	if !bytes.Equal(e.Id, s.id[:]) {
		return nil, refuse(protocol.EvidenceUnknown, "answers challenge %x", e.Id)
	}
	if e.Sequence != s.Message.Sequence {
		return nil, refuse(protocol.EvidenceOrder, "sequence %d, asked was %d", e.Sequence, s.Message.Sequence)
	}
	if !bytes.Equal(e.Previous, s.Message.Previous) {
		return nil, refuse(protocol.EvidenceChain, "does not continue the evidence before it")
	}
	if len(e.Results) != len(s.Ops) {
		return nil, refuse(protocol.EvidenceIncomplete, "%d results to %d ops", len(e.Results), len(s.Ops))
	}
	data := make([][]byte, len(s.Ops))
	for i, r := range e.Results {
		if r.Name != s.Ops[i].Name() {
			return nil, refuse(protocol.EvidenceIncomplete, "result %d is of %.32q, asked was %s", i, r.Name, s.Ops[i].Name())
		}
		data[i] = r.Data
		if s.chunks[i] != nil {
			if len(r.Data) > 0 || s.arrived[i] != uint64(len(s.chunks[i])) {
				return nil, refuse(protocol.EvidenceMalformed, "%s: chunks end at %d of %d bytes", r.Name, s.arrived[i], len(s.chunks[i]))
			}
			data[i] = s.chunks[i]
		}
		if r.DataSize != uint64(len(data[i])) {
			return nil, refuse(protocol.EvidenceMalformed, "%s: %d bytes of data, announced were %d", r.Name, len(data[i]), r.DataSize)
		}
	}
	signed := protocol.EvidenceTranscript(s.digest, s.peer.Binding, e, data)
	if !ed25519.Verify(s.peer.Key, signed, e.Signature) {
		return nil, refuse(protocol.EvidenceSignature, "not signed by the claim's key for this challenge and connection")
	}
	if ran := time.Duration(e.FinishedMs-e.StartedMs) * time.Millisecond; ran > took+clockSlack+took/8 {
		return nil, refuse(protocol.EvidenceTime, "says it ran for %v, %v passed here", ran, took)
	}
	a := &Accepted{Head: protocol.ChainNext([32]byte(e.Previous), signed)}
	for i, r := range e.Results {
		a.Answers = append(a.Answers, Answer{
			Asked:   s.Ops[i],
			Output:  protocol.Output{Digest: [32]byte(r.Digest), Data: data[i]},
			Elapsed: time.Duration(r.FinishedUs-r.StartedUs) * time.Microsecond,
			Error:   r.Error,
		})
	}
	return a, nil
}
