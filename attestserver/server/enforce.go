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
	o      *Options
	wishes chan phaseWish
	lost   chan struct{}

	// Of run: what gatewayd enforces, and what waits; each the zero value where that is not
	// known, or nothing does. They do not lie on its stack, which is to stay small.
	told, next phaseWish
}

func newEnforcer(o *Options) *enforcer {
	return &enforcer{o: o, wishes: make(chan phaseWish, 1), lost: make(chan struct{}, 1)}
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.lost:
			e.told, e.next = phaseWish{}, phaseWish{}
		case e.next = <-e.wishes:
			if e.wait() <= 0 {
				e.insist(ctx)
			}
		case <-e.due():
			e.insist(ctx)
		}
	}
}

// due is when what waits has to be told; nil where nothing does.
func (e *enforcer) due() <-chan time.Time {
	if e.next.session == "" {
		return nil
	}
	return e.o.Clock.After(e.wait())
}

// wait is how long what waits need not be told. Its wishes are copied where it is: they
// are not to lie on the stack of who waits.
//
//go:noinline
func (e *enforcer) wait() time.Duration {
	return max(e.next.renewAt(e.told).Sub(e.o.Clock.Now()), 0)
}

// insist tries until what waits is done, pointless or replaced.
func (e *enforcer) insist(ctx context.Context) {
	wait, again, failed := firstRetry, false, false
	for {
		deep.do(func() { again = e.attempt(ctx, failed) })
		if !again {
			return
		}
		failed = true
		select {
		case <-ctx.Done():
			return
		case e.next = <-e.wishes:
		case <-e.o.Clock.After(wait):
			wait = min(2*wait, lastRetry)
		}
	}
}

// attempt tells gatewayd what waits; again: it is to be told once more. failed: the
// attempt before this one has.
func (e *enforcer) attempt(ctx context.Context, failed bool) (again bool) {
	w := e.next
	err := e.set(ctx, w)
	switch {
	case err == nil:
		if failed {
			e.o.Events.Emit("gatewayd.back", event.Fields{"session": w.session})
		}
		if w.phase == portcullisv1.Phase_PHASE_QUARANTINE {
			e.o.Events.Emit("quarantine.enforced", event.Fields{"session": w.session, "reason": w.reason,
				"seconds": e.o.Clock.Now().Sub(w.made).Seconds()})
		}
		e.told, e.next = w, phaseWish{}
		return false
	case connect.CodeOf(err) == connect.CodeFailedPrecondition:
		e.o.Events.Emit("phase.refused", event.Fields{"session": w.session, "phase": w.phase.String(), "detail": err.Error()})
		e.told, e.next = phaseWish{}, phaseWish{}
		return false
	case !failed:
		e.o.Events.Emit("gatewayd.unreachable", event.Fields{"session": w.session, "detail": err.Error()})
	}
	return true
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
