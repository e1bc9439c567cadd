package server

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/internal/event"
)

// Waits between attempts to reach another service.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Second
)

// watch holds the stream of boot sessions open. While it is broken nothing
// new is trusted for longer than a verdict lives.
func (s *Server) watch(ctx context.Context) {
	wait, down := firstRetry, false
	for ctx.Err() == nil {
		err := s.watchOnce(ctx, func() {
			wait = firstRetry
			if down {
				down = false
				s.o.Events.Emit("pxed.back", nil)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if !down {
			down = true
			s.o.Events.Emit("pxed.unreachable", event.Fields{"detail": err.Error()})
		}
		s.sleep(ctx, wait)
		wait = min(2*wait, lastRetry)
	}
}

func (s *Server) watchOnce(ctx context.Context, alive func()) error {
	var stream *connect.ServerStreamForClient[portcullisv1.WatchSessionsResponse]
	var err error
	deep.do(func() {
		stream, err = s.o.Boot.WatchSessions(ctx, connect.NewRequest(&portcullisv1.WatchSessionsRequest{}))
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		alive()
		session := stream.Msg().GetSession()
		if session.GetId() == "" {
			continue // no session since pxed was installed
		}
		s.told.Store(session)
		if !s.post(func(c *core) { c.watched(session) }) {
			return context.Canceled
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errors.New("pxed ended the stream")
}

func (s *Server) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-s.o.Clock.After(d):
	}
}
