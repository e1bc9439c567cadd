package server

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	api "portcullis/api/portcullis/v1"
	"portcullis/internal/event"
	"portcullis/pxe/session"
)

// ErrDone is how Run ends when the boot is done, where it was told to rest then.
var ErrDone = errors.New("the boot is done")

// youngFor is how many times its rest pxed runs at least: whoever looks whether the Pi
// works after a start finds it.
const youngFor = 5

// rest returns ErrDone when the newest session is claimed and nobody has asked about one
// for the time of quiet; 0 = never. Whoever started pxed starts it again when the PC or
// attestd asks for it; the session goes on out of the journal.
func (s *state) rest(ctx context.Context, quiet time.Duration) error {
	if quiet <= 0 {
		return nil
	}
	began := time.Now()
	t := time.NewTicker(min(time.Second, max(quiet/10, time.Millisecond)))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			newest, ok := s.sessions.Newest()
			if !ok || newest.State != session.Claimed || now.Sub(began) < youngFor*quiet {
				continue
			}
			if now.Sub(newest.ClaimedAt) < quiet || now.Sub(time.Unix(0, s.asked.Load())) < quiet {
				continue
			}
			s.events.Emit("resting", event.Fields{"session": newest.ID})
			return ErrDone
		}
	}
}

// heard is the Boot service, and remembers when it was asked last.
type heard struct {
	boot
	asked func()
}

// Claim decides on a claim.
func (h heard) Claim(ctx context.Context, r *connect.Request[api.ClaimRequest]) (*connect.Response[api.ClaimResponse], error) {
	h.asked()
	return h.boot.Claim(ctx, r)
}

// GetSession returns one session, or the newest. Only the first is a reason not to rest.
func (h heard) GetSession(ctx context.Context, r *connect.Request[api.GetSessionRequest]) (*connect.Response[api.GetSessionResponse], error) {
	if r.Msg.GetId() != "" {
		h.asked()
	}
	return h.boot.GetSession(ctx, r)
}
