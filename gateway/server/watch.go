package server

import (
	"context"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
)

// bell tells all who wait that something has changed. The owner rings it.
type bell struct {
	rings uint64
	next  chan struct{} // closed by the next ring
}

func newBell() bell { return bell{next: make(chan struct{})} }

func (b *bell) ring() {
	b.rings++
	close(b.next)
	b.next = make(chan struct{})
}

// granted takes note of a grant that was given or has ended.
func (g *Gateway) granted() {
	g.grants++
	g.bell.ring()
}

// tellEvery is how often violations are told of, at most: the PC makes as many as it likes.
const tellEvery = time.Second

// tellOf has who listens look at the violations. It may be called from anywhere and
// does not wait: while the owner is busy nobody is told, and who asks finds out.
func (g *Gateway) tellOf() {
	select {
	case g.do <- func() {
		if now := g.opt.Clock.Now(); g.told.IsZero() || now.Sub(g.told) >= tellEvery || now.Before(g.told) {
			g.told = now
			g.bell.ring()
		}
	}:
	default:
	}
}

// WatchGateway tells of each change of grants and carrier, and of violations. A listener that is slow
// hears of several changes at once, so nothing is queued for it.
func (s *Service) WatchGateway(ctx context.Context, _ *connect.Request[v1.WatchGatewayRequest], out *connect.ServerStream[v1.WatchGatewayResponse]) error {
	for {
		var now bell
		if err := s.call(ctx, func() error {
			now = s.g.bell
			return nil
		}); err != nil {
			return err
		}
		if err := out.Send(&v1.WatchGatewayResponse{Changes: now.rings}); err != nil {
			return err
		}
		select {
		case <-now.next:
		case <-ctx.Done():
			return nil
		case <-s.g.done:
			return connect.NewError(connect.CodeUnavailable, errStopped)
		}
	}
}
