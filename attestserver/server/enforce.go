package server

import (
	"context"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/internal/event"
)

// callTime bounds one call to gatewayd.
const callTime = 2 * time.Second

// phaseWish is what gatewayd shall enforce.
type phaseWish struct {
	session  string
	phase    portcullisv1.Phase
	notAfter time.Time // of PHASE_RUN
	reason   string
}

// enforcer tells gatewayd the newest wish, again and again until it is heard.
// While it is not, PHASE_RUN lapses there by itself.
type enforcer struct {
	o      Options
	wishes chan phaseWish
}

func newEnforcer(o Options) *enforcer { return &enforcer{o, make(chan phaseWish, 1)} }

// want replaces the wish before. Only the core calls it.
func (e *enforcer) want(w phaseWish) {
	select {
	case <-e.wishes:
	default:
	}
	e.wishes <- w
}

func (e *enforcer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-e.wishes:
			e.insist(ctx, w)
		}
	}
}

// insist tries until w is done, pointless or replaced.
func (e *enforcer) insist(ctx context.Context, w phaseWish) {
	wait, failed := firstRetry, false
	for {
		err := e.set(ctx, w)
		switch {
		case err == nil:
			if failed {
				e.o.Events.Emit("gatewayd.back", event.Fields{"session": w.session})
			}
			return
		case connect.CodeOf(err) == connect.CodeFailedPrecondition:
			e.o.Events.Emit("phase.refused", event.Fields{"session": w.session, "phase": w.phase.String(), "detail": err.Error()})
			return
		case !failed:
			failed = true
			e.o.Events.Emit("gatewayd.unreachable", event.Fields{"session": w.session, "detail": err.Error()})
		}
		select {
		case <-ctx.Done():
			return
		case w = <-e.wishes:
		case <-e.o.Clock.After(wait):
			wait = min(2*wait, lastRetry)
		}
	}
}

func (e *enforcer) set(ctx context.Context, w phaseWish) error {
	request := &portcullisv1.SetPhaseRequest{Session: w.session, Phase: w.phase, Reason: w.reason}
	if w.phase == portcullisv1.Phase_PHASE_RUN {
		left := w.notAfter.Sub(e.o.Clock.Now())
		if left < time.Millisecond {
			return nil // has lapsed meanwhile
		}
		request.TtlMs = left.Milliseconds()
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := e.o.Gateway.SetPhase(ctx, connect.NewRequest(request))
	return err
}
