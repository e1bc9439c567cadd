package server

import (
	"context"
	"runtime"
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
	made     time.Time
	notAfter time.Time // of PHASE_RUN
	reason   string
}

// renewAt is when gatewayd has to hear w that was told before last: at once, but for a
// run that only goes on. That one is renewed when half of the time that gatewayd
// knows of is over: the run never lasts longer there than the verdict, and the
// many good answers of that time need no call each.
func (w phaseWish) renewAt(told phaseWish) time.Time {
	const run = portcullisv1.Phase_PHASE_RUN
	if w.phase != run || told.phase != run || told.session != w.session {
		return time.Time{}
	}
	return told.made.Add(told.notAfter.Sub(told.made) / 2)
}

// enforcer tells gatewayd the newest wish, again and again until it is heard.
// While it is not, PHASE_RUN lapses there by itself.
type enforcer struct {
	o      Options
	wishes chan phaseWish
	lost   chan struct{}
}

func newEnforcer(o Options) *enforcer {
	return &enforcer{o, make(chan phaseWish, 1), make(chan struct{}, 1)}
}

// forget has the next wish told at once, whatever gatewayd was told before, and none
// from before: its session is over, or gatewayd does not enforce what it was told.
// Only the core calls it.
func (e *enforcer) forget() {
	select {
	case e.lost <- struct{}{}:
	default:
	}
}

// want replaces the wish before. Only the core calls it.
func (e *enforcer) want(w phaseWish) {
	select {
	case <-e.wishes:
	default:
	}
	e.wishes <- w
	if w.phase == portcullisv1.Phase_PHASE_QUARANTINE {
		// The caller goes on to wait for the disk, and may keep its processor for as long as the
		// runtime does not notice: on a busy machine that was a quarter of a second. Now it is the enforcer's.
		runtime.Gosched()
	}
}

func (e *enforcer) run(ctx context.Context) {
	var told, next phaseWish // next is the zero value where nothing waits
	for {
		var due <-chan time.Time
		if next.session != "" {
			due = e.o.Clock.After(max(next.renewAt(told).Sub(e.o.Clock.Now()), 0))
		}
		select {
		case <-ctx.Done():
			return
		case <-e.lost:
			told, next = phaseWish{}, phaseWish{}
			continue
		case next = <-e.wishes:
			if e.o.Clock.Now().Before(next.renewAt(told)) {
				continue
			}
		case <-due:
		}
		told, next = e.insist(ctx, next), phaseWish{}
	}
}

// insist tries until w is done, pointless or replaced. It returns what gatewayd
// enforces now, the zero value where that is not known.
func (e *enforcer) insist(ctx context.Context, w phaseWish) phaseWish {
	wait, failed := firstRetry, false
	for {
		var err error
		deep.do(func() { err = e.set(ctx, w) })
		switch {
		case err == nil:
			if failed {
				e.o.Events.Emit("gatewayd.back", event.Fields{"session": w.session})
			}
			if w.phase == portcullisv1.Phase_PHASE_QUARANTINE {
				e.o.Events.Emit("quarantine.enforced", event.Fields{"session": w.session, "reason": w.reason,
					"seconds": e.o.Clock.Now().Sub(w.made).Seconds()})
			}
			return w
		case connect.CodeOf(err) == connect.CodeFailedPrecondition:
			e.o.Events.Emit("phase.refused", event.Fields{"session": w.session, "phase": w.phase.String(), "detail": err.Error()})
			return phaseWish{}
		case !failed:
			failed = true
			e.o.Events.Emit("gatewayd.unreachable", event.Fields{"session": w.session, "detail": err.Error()})
		}
		select {
		case <-ctx.Done():
			return phaseWish{}
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
