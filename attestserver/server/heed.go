package server

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/verdict"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

// What a burst follows, in the event challenge.burst.
const (
	burstTask    = "task"    // a grant was given or has ended: a task begins or ends
	burstCarrier = "carrier" // the cable
)

// ring has gatewayd asked at once.
func (s *Server) ring() {
	select {
	case s.bell <- struct{}{}:
	default: // rung, and not heard yet
	}
}

// heed rings whenever gatewayd says that grants or carrier have changed. While
// gatewayd does not answer, watchWire still asks it now and then.
func (s *Server) heed(ctx context.Context) {
	wait := firstRetry
	for ctx.Err() == nil {
		_ = s.heedOnce(ctx, func() {
			wait = firstRetry
			s.heeding.Store(true)
			s.ring()
		})
		s.heeding.Store(false)
		s.sleep(ctx, wait)
		wait = min(2*wait, lastRetry)
	}
}

func (s *Server) heedOnce(ctx context.Context, ring func()) error {
	ctx, wire := rpc.Held(ctx)
	var stream *connect.ServerStreamForClient[portcullisv1.WatchGatewayResponse]
	var err error
	deep.do(func() {
		stream, err = s.o.Gateway.WatchGateway(ctx, connect.NewRequest(&portcullisv1.WatchGatewayRequest{}))
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	for more := true; more; {
		wire.Wait()
		if deep.do(func() { more = stream.Receive() }); more {
			ring()
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errors.New("gatewayd ended the stream")
}

// wireBurst begins a burst where a task has begun or ended, or the cable's carrier
// has changed: what is worth hiding between two challenges begins and ends there. The
// count of a gatewayd that was started anew differs as well, which costs one burst.
func (c *core) wireBurst(was, now wire) {
	cause := ""
	switch {
	case !was.heard || !now.known || c.link == nil || c.machine.State() == verdict.Quarantined:
		return
	case now.grants != was.grants:
		cause = burstTask
	case now.carrier != was.carrier:
		cause = burstCarrier
	default:
		return
	}
	c.o.Events.Emit("challenge.burst", event.Fields{"session": c.machine.Session(), "cause": cause})
	c.hurry(c.o.Clock.Now())
}
