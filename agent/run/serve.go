package run

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"portcullis/agent/channel"
	"portcullis/attestserver/protocol"
)

// overlap is how long a connection is still served after another has taken its
// place, should the gateway not close it: longer than any deadline (attest.deadline
// is five minutes at most), since the answer to a question that is open goes there.
const overlap = 6 * time.Minute

// server serves the connections of one boot, of which there are two while one
// takes over from the other.
type server struct {
	*Agent
	probes map[string]protocol.Probe
	turn   sync.Mutex
	latest atomic.Pointer[channel.Conn] // the connection that was made last

	renewing atomic.Bool // a connection that the gateway asked for is being made

	dialing sync.Mutex // one claim after the other
}

// dial makes a connection when no other is being made.
func (s *server) dial(ctx context.Context) (*channel.Conn, error) {
	s.dialing.Lock()
	defer s.dialing.Unlock()
	return channel.Dial(ctx, s.Address, s.Facts, s.Key)
}

// serve answers on conn, and on what takes its place, until the last ends.
func (s *server) serve(ctx context.Context, conn *channel.Conn) error {
	for {
		ended := make(chan error, 1)
		renewed := make(chan *channel.Conn, 1)
		go func() { ended <- s.answer(ctx, conn, renewed) }()
		select {
		case err := <-ended:
			// One that is being made takes its place all the same, since a second claim
			// beside it would end it: renew holds the lock.
			s.dialing.Lock()
			s.dialing.Unlock()
			select {
			case conn = <-renewed:
			default:
				return err
			}
		case next := <-renewed:
			old := conn
			time.AfterFunc(overlap, func() { old.Close() })
			conn = next
		}
	}
}

// answer answers on one connection until it ends. A connection that the gateway
// asked for in its place goes to renewed.
func (s *server) answer(ctx context.Context, conn *channel.Conn, renewed chan<- *channel.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s.latest.Store(conn)
	answers := &answerer{conn: conn, key: s.Key, probes: s.probes, turn: &s.turn}
	for {
		m, err := conn.Receive(protocol.MaxFrame)
		if err != nil {
			return fmt.Errorf("read challenge: %w", err)
		}
		switch body := m.Body.(type) {
		case *protocol.Message_Challenge:
			if err := answers.answer(ctx, body.Challenge); err != nil {
				return fmt.Errorf("answer challenge: %w", err)
			}
		case *protocol.Message_Down:
			if err := s.down(conn, body.Down); err != nil {
				return err
			}
		case *protocol.Message_Rekey:
			if s.renewing.CompareAndSwap(false, true) {
				go s.renew(ctx, renewed)
			}
		default:
			return fmt.Errorf("read challenge: %w: another message", protocol.ErrMalformed)
		}
	}
}

// renew makes the connection that the gateway asked for. It tries once: where it
// fails the gateway asks again, or ends the old one.
func (s *server) renew(ctx context.Context, renewed chan<- *channel.Conn) {
	defer s.renewing.Store(false)
	s.dialing.Lock()
	defer s.dialing.Unlock()
	conn, err := channel.Dial(ctx, s.Address, s.Facts, s.Key)
	if err != nil {
		s.Log("state=rekey-failed reason=" + reason(err) + fmt.Sprintf(" detail=%q", err))
		return
	}
	s.Log(fmt.Sprintf("state=rekeyed epoch=%d", conn.Epoch))
	renewed <- conn
}
