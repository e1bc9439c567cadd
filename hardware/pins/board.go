package pins

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"periph.io/x/conn/v3/gpio"

	"portcullis/hardware"
	"portcullis/internal/clock"
)

// Reasons.
const (
	ReasonNotWired hardware.Reason = "pins-not-wired" // the configuration names no line for it
	ReasonNoLine   hardware.Reason = "pins-no-line"   // the kernel knows no line of that name
	ReasonBusy     hardware.Reason = "pins-busy"      // another press is under way or has just ended
	ReasonStuck    hardware.Reason = "pins-stuck"     // a line does not follow
)

// Board is the wired parts. Its methods may be called concurrently.
type Board struct {
	c      Config
	clock  clock.Clock
	on     gpio.Level // of the relays
	power  gpio.PinIO
	reset  gpio.PinIO
	led    gpio.PinIO
	buzzer gpio.PinIO
	intr   gpio.PinIO

	press sync.Mutex // held while a button is down and during the pause behind it
	light chan hardware.Indication
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// Open takes the lines that c names from lookup, for instance gpioreg.ByName, and puts
// every output into its safe state: relays released, light and buzzer off. That is
// also what undoes a press in which an earlier process was killed: some kernels keep
// an output as it was.
func Open(c Config, lookup func(name string) gpio.PinIO, clk clock.Clock) (*Board, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	b := &Board{c: c, clock: clk, on: gpio.Level(!c.RelayActiveLow), light: make(chan hardware.Indication, 1)}
	for _, l := range []struct {
		name string
		pin  *gpio.PinIO
	}{{c.Power, &b.power}, {c.Reset, &b.reset}, {c.LED, &b.led}, {c.Buzzer, &b.buzzer}, {c.Intrusion, &b.intr}} {
		if l.name == "" {
			continue
		}
		if *l.pin = lookup(l.name); *l.pin == nil {
			return nil, refuse(ReasonNoLine, "the kernel knows no line %s", l.name)
		}
	}
	if err := b.safe(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	b.done.Add(1)
	go func() { defer b.done.Done(); b.shine(ctx) }()
	return b, nil
}

// safe puts every output into its safe state, all of them even where one fails.
func (b *Board) safe() error {
	var errs []error
	for _, o := range []struct {
		pin   gpio.PinIO
		level gpio.Level
	}{{b.power, !b.on}, {b.reset, !b.on}, {b.led, gpio.Low}, {b.buzzer, gpio.Low}} {
		if o.pin != nil {
			errs = append(errs, set(o.pin, o.level))
		}
	}
	return errors.Join(errs...)
}

func set(p gpio.PinIO, l gpio.Level) error {
	if err := p.Out(l); err != nil {
		return fmt.Errorf("%s: %w", p.Name(), err)
	}
	return nil
}

// PressPower presses the PC's power button for ShortPress, or LongPress where force is
// true. It returns when the button is up again, also where ctx ends early.
func (b *Board) PressPower(ctx context.Context, force bool) error {
	hold := ShortPress
	if force {
		hold = LongPress
	}
	return b.hold(ctx, b.power, "power", hold)
}

// PressReset presses the PC's reset button for ResetPress.
func (b *Board) PressReset(ctx context.Context) error {
	return b.hold(ctx, b.reset, "reset", ResetPress)
}

// hold presses one button. One at a time: both together, or in quick succession, is a
// combination that mainboards give meanings of their own.
func (b *Board) hold(ctx context.Context, p gpio.PinIO, what string, d time.Duration) (err error) {
	if p == nil {
		return refuse(ReasonNotWired, "no line is configured for %s", what)
	}
	if !b.press.TryLock() {
		return refuse(ReasonBusy, "another press is under way or has just ended")
	}
	// The pause runs on behind the caller's back.
	defer func() {
		pause := b.clock.After(PressPause)
		go func() { <-pause; b.press.Unlock() }()
	}()
	defer func() { err = errors.Join(err, release(p, !b.on)) }()
	if err := set(p, b.on); err != nil {
		return err
	}
	if p.Read() != b.on {
		return refuse(ReasonStuck, "%s does not follow: it cannot be pressed", p.Name())
	}
	select {
	case <-b.clock.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func release(p gpio.PinIO, off gpio.Level) error {
	if err := set(p, off); err != nil {
		return err
	}
	if p.Read() != off {
		return refuse(ReasonStuck, "%s does not follow: the button may still be down", p.Name())
	}
	return nil
}

// Beep sounds the buzzer for d, at most MaxBeep.
func (b *Board) Beep(ctx context.Context, d time.Duration) (err error) {
	if b.buzzer == nil {
		return refuse(ReasonNotWired, "no line is configured for the buzzer")
	}
	defer func() { err = errors.Join(err, set(b.buzzer, gpio.Low)) }()
	if err := set(b.buzzer, gpio.High); err != nil {
		return err
	}
	select {
	case <-b.clock.After(min(d, MaxBeep)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends the light and puts every output into its safe state.
func (b *Board) Close() error {
	b.stop()
	b.done.Wait()
	return b.safe()
}

func refuse(r hardware.Reason, format string, args ...any) error {
	return &hardware.Error{Reason: r, Err: fmt.Errorf(format, args...)}
}
