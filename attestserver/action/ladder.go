package action

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/policy"
	"portcullis/internal/event"
)

// Rung is one way to take the PC down.
type Rung string

// The rungs.
const (
	RungAgent      Rung = "agent"       // a signed message to the agent
	RungRelayReset Rung = "relay-reset" // the reset button
	RungRelayPower Rung = "relay-power" // the power button, off by force; for a reboot then on again
	RungWake       Rung = "wake"        // the magic packet: it starts a PC that is off
	RungHook       Rung = "hook"        // the operator's command (Redfish, AMT, a switched socket)
)

// Rungs lists them.
var Rungs = []Rung{RungAgent, RungRelayReset, RungRelayPower, RungWake, RungHook}

// Ladder says which rungs are tried, in which order.
type Ladder struct {
	Rungs   []Rung
	Within  time.Duration // what the PC has to go down, and again as much to come back
	OffTime time.Duration // off before it is switched on again
}

func (l Ladder) check() error {
	if len(l.Rungs) > 0 && (l.Within <= 0 || l.OffTime < 0) {
		return errors.New("actions: a ladder without times")
	}
	for i, r := range l.Rungs {
		if !slices.Contains(Rungs, r) || slices.Contains(l.Rungs[:i], r) {
			return fmt.Errorf("actions: rung %q is unknown or stands there twice", r)
		}
	}
	return nil
}

// Times of watching a PC go down.
const (
	lookEvery = 200 * time.Millisecond
	// darkTime is how long a cable must be dark to mean that the PC is off: a reset
	// darkens it, too.
	darkTime = 5 * time.Second
	// quietTime is how long there must be neither an agent nor a boot request, where the
	// network card keeps the cable up on standby power.
	quietTime = 15 * time.Second
	// obeyTime is what an agent has to hang up, the first thing it does when it obeys. It may be
	// at an answer when the message comes.
	obeyTime = 10 * time.Second
	// sessionTime is what pxed has to tell the session after a start of attestd.
	sessionTime = 30 * time.Second
)

// takeDown climbs the ladder until the PC is down: for a reboot until a new boot
// session has begun, for a power-off until the cable or the agent tells.
func (e *Engine) takeDown(ctx context.Context, j *job) outcome {
	for waited := time.Duration(0); e.o.PC.Session() == "" && waited < sessionTime; waited += lookEvery {
		if !e.pause(ctx, lookEvery) {
			return failed("", ctx.Err().Error())
		}
	}
	if s := e.o.PC.Session(); s != j.session {
		return settled(ReasonSessionOver, "the PC has begun the boot session "+s)
	}
	rungs := e.o.Ladder.Rungs
	if i := slices.Index(rungs, Rung(j.rung)); i > 0 {
		rungs = rungs[i:] // an earlier life has tried those before
	}
	var tried []string
	for _, r := range rungs {
		if j.action == policy.PowerOff && (r == RungRelayReset || r == RungWake) {
			continue // they cannot
		}
		began := e.o.Clock.Now()
		e.step(j, r, "", "", 0)
		how, err := e.climb(ctx, j, r)
		took := e.o.Clock.Now().Sub(began)
		if ctx.Err() != nil && err != nil {
			return failed("", ctx.Err().Error())
		}
		if err == nil {
			e.step(j, r, "down", how, took)
			return done(fmt.Sprintf("%s: %s after %s", r, how, took.Round(time.Millisecond)))
		}
		e.step(j, r, ResultFailed, err.Error(), took)
		tried = append(tried, fmt.Sprintf("%s: %v", r, err))
	}
	if len(tried) == 0 {
		return failed(ReasonNoRung, "the ladder has no rung for it")
	}
	return failed(ReasonNoRung, strings.Join(tried, "; "))
}

// step records that a rung begins, or how it ended.
func (e *Engine) step(j *job, r Rung, result, detail string, took time.Duration) {
	rec := e.record(j, stateStep)
	rec.Rung, rec.Result, rec.Detail = string(r), result, detail
	e.write(rec)
	e.o.Events.Emit("action.step", event.Fields{"id": j.id.String(), "action": string(j.action), "session": j.session, "rung": string(r),
		"result": result, "detail": detail, "seconds": took.Seconds()})
}

// climb does what the rung does and watches what becomes of the PC.
func (e *Engine) climb(ctx context.Context, j *job, r Rung) (how string, err error) {
	w := e.watch(ctx)
	if err := e.push(ctx, j, r); err != nil {
		return "", err
	}
	if r == RungAgent && !w.obeyed(ctx) {
		return "", fmt.Errorf("the agent has not hung up within %s", obeyTime)
	}
	if j.action == policy.Reboot {
		return w.rebooted(ctx, j.session)
	}
	return w.off(ctx)
}

func (e *Engine) push(ctx context.Context, j *job, r Rung) error {
	off := j.action == policy.PowerOff
	// A press takes up to 5 s and a pause, a hook its own time.
	ctx, cancel := context.WithTimeout(ctx, e.o.Ladder.Within+e.o.Ladder.OffTime+30*time.Second)
	defer cancel()
	switch r {
	case RungAgent:
		if !e.o.PC.Agent() {
			return errors.New("the agent is not connected")
		}
		return e.o.PC.Down(ctx, j.id, j.session, off)
	case RungRelayReset:
		return e.pressButton(ctx, portcullisv1.Button_BUTTON_RESET)
	case RungRelayPower:
		if err := e.pressButton(ctx, portcullisv1.Button_BUTTON_FORCE_OFF); err != nil || off {
			return err
		}
		if !e.pause(ctx, e.o.Ladder.OffTime) {
			return ctx.Err()
		}
		return e.pressButton(ctx, portcullisv1.Button_BUTTON_POWER)
	case RungWake:
		_, err := e.o.Gateway.Wake(ctx, connect.NewRequest(&portcullisv1.WakeRequest{}))
		return err
	default:
		if e.o.Hook == nil {
			return errors.New("no hook is configured")
		}
		verb := portcullisv1.HookVerb_HOOK_VERB_RESET
		if off {
			verb = portcullisv1.HookVerb_HOOK_VERB_OFF
		}
		_, err := e.o.Hook.RunHook(ctx, connect.NewRequest(&portcullisv1.RunHookRequest{Verb: verb}))
		return err
	}
}

func (e *Engine) pressButton(ctx context.Context, b portcullisv1.Button) error {
	if e.o.Relay == nil {
		return errors.New("no relay is configured")
	}
	_, err := e.o.Relay.Press(ctx, connect.NewRequest(&portcullisv1.PressRequest{Button: b}))
	return err
}

// watcher sees a PC go down from one moment on.
type watcher struct {
	e       *Engine
	session string
	losses  uint64
	known   bool // gatewayd has told of the cable
}

func (e *Engine) watch(ctx context.Context) *watcher {
	w := &watcher{e: e, session: e.o.PC.Session()}
	_, w.losses, w.known = e.cable(ctx)
	return w
}

// obeyed waits until the agent hangs up. One that is stopped, or does not want to, does not: the
// kernel below it keeps the connection.
func (w *watcher) obeyed(ctx context.Context) bool {
	for waited := time.Duration(0); w.e.o.PC.Agent() && w.e.o.PC.Session() == w.session; waited += lookEvery {
		if waited >= obeyTime || !w.e.pause(ctx, lookEvery) {
			return false
		}
	}
	return true
}

// cable asks gatewayd.
func (e *Engine) cable(ctx context.Context) (carrier bool, losses uint64, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	s, err := e.o.Gateway.GetGatewayStatus(ctx, connect.NewRequest(&portcullisv1.GetGatewayStatusRequest{}))
	if err != nil {
		return false, 0, false
	}
	return s.Msg.Carrier, s.Msg.CarrierLosses, true
}

// rebooted waits for a boot request. Where the cable went dark, the PC went down and
// gets as much time again to come back.
func (w *watcher) rebooted(ctx context.Context, session string) (string, error) {
	end := w.e.o.Clock.Now().Add(w.e.o.Ladder.Within)
	dark := false
	for {
		if s := w.e.o.PC.Session(); s != session {
			return "a new boot session has begun", nil
		}
		if _, losses, ok := w.e.cable(ctx); ok && w.known && !dark && losses > w.losses {
			dark = true
			end = w.e.o.Clock.Now().Add(w.e.o.Ladder.Within)
		}
		switch now := w.e.o.Clock.Now(); {
		case now.Before(end):
		case dark:
			return "", fmt.Errorf("the cable went dark, but no boot request came within %s", w.e.o.Ladder.Within)
		default:
			return "", fmt.Errorf("no boot request within %s", w.e.o.Ladder.Within)
		}
		if !w.e.pause(ctx, lookEvery) {
			return "", ctx.Err()
		}
	}
}

// off waits until the cable is dark, or nothing of the PC is heard, for long enough.
func (w *watcher) off(ctx context.Context) (string, error) {
	start := w.e.o.Clock.Now()
	var dark, quiet time.Time
	since := func(t *time.Time, is bool, now time.Time) time.Duration {
		if !is {
			*t = time.Time{}
			return 0
		}
		if t.IsZero() {
			*t = now
		}
		return now.Sub(*t)
	}
	for {
		now := w.e.o.Clock.Now()
		carrier, _, ok := w.e.cable(ctx)
		if since(&dark, ok && !carrier, now) >= darkTime {
			return "the cable is dark", nil
		}
		if since(&quiet, !w.e.o.PC.Agent() && w.e.o.PC.Session() == w.session, now) >= quietTime {
			return "neither agent nor boot request", nil
		}
		if w.e.o.PC.Session() != w.session {
			return "", errors.New("the PC has booted instead")
		}
		if now.Sub(start) >= w.e.o.Ladder.Within {
			return "", fmt.Errorf("still there after %s", w.e.o.Ladder.Within)
		}
		if !w.e.pause(ctx, lookEvery) {
			return "", ctx.Err()
		}
	}
}
