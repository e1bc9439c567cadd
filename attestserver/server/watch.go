package server

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
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
			deep.do(func() { s.o.Events.Emit("pxed.unreachable", event.Fields{"detail": err.Error()}) })
		}
		s.sleep(ctx, wait)
		wait = min(2*wait, lastRetry)
	}
}

func (s *Server) watchOnce(ctx context.Context, alive func()) error {
	ctx, wire := rpc.Held(ctx)
	var stream *connect.ServerStreamForClient[portcullisv1.WatchSessionsResponse]
	var err error
	deep.do(func() {
		stream, err = s.o.Boot.WatchSessions(ctx, connect.NewRequest(&portcullisv1.WatchSessionsRequest{}))
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	if !s.begun() {
		return context.Canceled
	}
	for err == nil {
		wire.Wait()
		deep.do(func() { err = s.watchNext(stream, alive) })
	}
	return err
}

// watchNext takes the next message of the stream.
func (s *Server) watchNext(stream *connect.ServerStreamForClient[portcullisv1.WatchSessionsResponse], alive func()) error {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return err
		}
		return errors.New("pxed ended the stream")
	}
	alive()
	session := stream.Msg().GetSession()
	if session.GetId() == "" {
		return nil // no session since pxed was installed
	}
	s.told.Store(session)
	if !s.postHere(func(c *core) { c.watched(session) }) {
		return context.Canceled
	}
	return nil
}

func (s *Server) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-s.o.Clock.After(d):
	}
}
