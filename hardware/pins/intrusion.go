package pins

import (
	"context"
	"fmt"
	"time"

	"periph.io/x/conn/v3/gpio"

	"portcullis/hardware"
)

// SourceChassis is the source of the intrusion switch's events.
const SourceChassis = "chassis"

// Details of a chassis event.
const (
	DetailOpened   = "opened"
	DetailFound    = "found open at the start"
	DetailUnstable = "the switch does not come to rest: loose, or played with"
)

const (
	// pollEdge bounds one wait for an edge, so that ctx is seen and an edge that the
	// kernel lost is found by looking.
	pollEdge = 250 * time.Millisecond
	// drain is long enough to take an edge that is waiting: a deadline that has passed
	// already would not even look, and 0 would wait for ever.
	drain = time.Millisecond
	// maxBounces in one settling are more than a switch does.
	maxBounces = 50
)

// Intrusion reports when the case is opened until ctx ends. Closing it again is no event:
// it re-arms. Events wait for the reader; there is at most one pending, since one
// is enough to act. It returns when the switch has come to rest for the first time.
func (b *Board) Intrusion(ctx context.Context) (<-chan hardware.Tamper, error) {
	if b.intr == nil {
		return nil, refuse(ReasonNotWired, "no line is configured for the intrusion switch")
	}
	pull := gpio.PullUp
	if b.c.IntrusionNormallyOpen {
		pull = gpio.PullDown
	}
	if err := b.intr.In(pull, gpio.BothEdges); err != nil {
		return nil, fmt.Errorf("%s: %w", b.intr.Name(), err)
	}
	out := make(chan hardware.Tamper, 1)
	open, steady := b.settle(ctx)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !steady:
		b.tell(out, DetailUnstable)
	case open:
		b.tell(out, DetailFound)
	}
	go func() {
		defer close(out)
		b.guard(ctx, out, open || !steady)
	}()
	return out, nil
}

// open reports whether the line reads as an open case. Both kinds of switch read high
// then: the usual one because the pull-up takes over when it leaves ground, the other
// because it connects to 3.3 V.
func (b *Board) open() bool { return b.intr.Read() == gpio.High }

func (b *Board) tell(out chan<- hardware.Tamper, detail string) {
	select {
	case out <- hardware.Tamper{Time: b.clock.Now().UTC(), Source: SourceChassis, Detail: detail}:
	default:
	}
}

// guard watches from state on; an open case is true.
func (b *Board) guard(ctx context.Context, out chan<- hardware.Tamper, state bool) {
	for ctx.Err() == nil {
		edge := b.intr.WaitForEdge(pollEdge)
		if !edge && b.open() == state {
			continue
		}
		now, steady := b.settle(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case !steady:
			b.tell(out, DetailUnstable)
			state = true
		case now && !state:
			b.tell(out, DetailOpened)
			state = true
		case !now:
			state = false
		}
	}
}

// settle waits until the line kept one level for the debounce time.
func (b *Board) settle(ctx context.Context) (open, steady bool) {
	last := b.open()
	for range maxBounces {
		select {
		case <-b.clock.After(b.c.Debounce):
		case <-ctx.Done():
			return last, false
		}
		now := b.open()
		if now == last && !b.intr.WaitForEdge(drain) {
			return now, true
		}
		last = b.open()
	}
	return last, false
}
