package server

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"portcullis/attestserver/challenge"
	"portcullis/attestserver/channel"
	"portcullis/attestserver/protocol"
)

// fate says what became of a challenge.
type fate uint8

const (
	answered fate = iota + 1
	expired
)

// memory is how many challenges of a connection are remembered, to tell a
// replay and a late answer from an invention.
const memory = 256

// link is the connection of the agent whose claim was granted.
type link struct {
	conn     *channel.Conn
	epoch    *protocol.Epoch
	settled  bool // evidence has come that was made with the epoch
	peer     challenge.Peer
	head     [32]byte // of the evidence chain
	sequence uint64   // of the last challenge
	fates    fates
	busy     time.Time // the agent may be at an answer that is late already until then
	waits    bool      // in the line, until busy
	notices  *rate.Limiter
	out      outbox
}

// newLink answers the claim and starts reading. head is that of the evidence
// chain so far, zero where nothing was accepted yet.
func newLink(s *Server, g *grant, head [32]byte) *link {
	bound := g.epoch.Bind(g.conn.Binding)
	if head == ([32]byte{}) {
		head = protocol.ChainStart(bound)
	} else {
		head = protocol.ChainContinue(head, bound)
	}
	l := &link{
		conn:    g.conn,
		epoch:   g.epoch,
		peer:    challenge.Peer{Session: g.session.Id, Key: g.conn.Key, Binding: bound},
		head:    head,
		notices: rate.NewLimiter(noticeRate, noticeBurst),
	}
	l.out.at = l.conn
	l.out.begin(func() error { return l.conn.Grant(g.resumed) })
	go l.read(s)
	return l
}

// read hands every message to the core, one at a time: what the core has not
// looked at is not read, so a flood fills nothing.
func (l *link) read(s *Server) {
	for more := true; more; {
		l.conn.Wait()
		deep.do(func() { more = l.take(s) })
	}
}

// take hands over the next message; false: there is none, or nobody to take it.
func (l *link) take(s *Server) bool {
	m, err := l.conn.Receive(protocol.MaxFrame)
	at := s.o.Clock.Now()
	if err != nil {
		s.workHere(func(c *core) { c.ended(l, err) })
		return false
	}
	return s.workHere(func(c *core) { c.received(l, m, at) })
}

func (l *link) close() {
	l.conn.Close() // what is not sent by then never is
}

// fates are those of the last challenges. They are few, so they are looked through: a map
// of them and their order are 20 KiB a PC after some minutes.
type fates struct {
	ids    [][16]byte
	is     []fate
	oldest int // once there are as many as are remembered
}

// of is 0 for a challenge that is not remembered.
func (s *fates) of(id [16]byte) fate {
	if i := slices.Index(s.ids, id); i >= 0 {
		return s.is[i]
	}
	return 0
}

// set forgets the oldest where there is no room.
func (s *fates) set(id [16]byte, f fate) {
	switch i := slices.Index(s.ids, id); {
	case i >= 0:
		s.is[i] = f
	case len(s.ids) < memory:
		s.ids, s.is = append(s.ids, id), append(s.is, f)
	default:
		s.ids[s.oldest], s.is[s.oldest] = id, f
		s.oldest = (s.oldest + 1) % memory
	}
}

// ended takes the end of a connection.
func (c *core) ended(l *link, err error) {
	if l != c.link {
		return
	}
	now := c.o.Clock.Now()
	if errors.Is(err, protocol.ErrFrame) {
		c.unasked(now, finding("", protocol.EvidenceMalformed, protocol.Fatal, err.Error()))
		return
	}
	c.lost(now, l, err.Error())
}

// received takes one message.
func (c *core) received(l *link, m *protocol.Message, at time.Time) {
	if l != c.link {
		return
	}
	switch body := m.Body.(type) {
	case *protocol.Message_Chunk:
		c.chunk(at, body.Chunk)
	case *protocol.Message_Evidence:
		c.evidence(at, body.Evidence)
	case *protocol.Message_Notice:
		c.noticed(at, body.Notice)
	default:
		c.unasked(at, finding("", protocol.EvidenceMalformed, protocol.Fatal, "a message that no agent sends now"))
	}
}

func (c *core) chunk(at time.Time, k *protocol.Chunk) {
	id, err := chunkID(k)
	switch {
	case err == nil && c.link.fates.of(id) != 0:
		return // of an answer that is no longer awaited; its evidence will tell
	case c.open == nil, err != nil:
		c.unasked(at, finding("", protocol.EvidenceMalformed, protocol.Fatal, "a chunk that nothing asked for"))
		return
	}
	if err := c.open.Chunk(k); err != nil {
		c.settle(at, refusal(err))
	}
}

func chunkID(k *protocol.Chunk) ([16]byte, error) {
	if err := k.Check(); err != nil {
		return [16]byte{}, err
	}
	return [16]byte(k.Id), nil
}

func (c *core) evidence(at time.Time, e *protocol.Evidence) {
	if err := e.Check(); err != nil {
		c.unasked(at, finding("", protocol.EvidenceMalformed, protocol.Fatal, err.Error()))
		return
	}
	id := [16]byte(e.Id)
	switch c.link.fates.of(id) {
	case answered:
		c.unasked(at, finding("", protocol.EvidenceReplayed, protocol.Fatal, "this challenge was answered before"))
		return
	case expired:
		c.link.fates.set(id, answered) // a second time it would be a replay
		c.link.busy = time.Time{}
		c.note(at, e.Sequence, finding("", protocol.EvidenceLate, protocol.Info, "the answer came after its deadline"))
		return
	}
	if c.open == nil || c.open.ID() != id {
		c.unasked(at, finding("", protocol.EvidenceUnknown, protocol.Fatal, "answers no challenge of this connection"))
		return
	}
	took := at.Sub(c.asked)
	if took > c.deadline() {
		c.link.fates.set(id, expired)
		c.fail(at, finding("", protocol.EvidenceLate, protocol.Soft, "the answer took "+took.Round(time.Millisecond).String()))
		return
	}
	accepted, err := c.open.Check(e, took)
	if err != nil {
		c.settle(at, refusal(err))
		return
	}
	sent := c.open
	c.link.fates.set(id, answered)
	c.open, c.link.head = nil, accepted.Head
	c.confirm()
	c.judge(sent, accepted, took)
}
