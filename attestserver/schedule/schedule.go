// Package schedule decides when the PC is asked next: at moments it cannot
// predict. It is pure; attestserver/server calls it with crypto/rand.
package schedule

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// CapFactor bounds a gap to this many means: the memoryless law has no longest
// gap, but a verdict must expire some time.
const CapFactor = 3

// A burst is BurstSize challenges with at most BurstSpan of waiting in all.
const (
	BurstSize = 3
	BurstSpan = time.Second
)

// ErrPlan is a plan whose numbers make no sense.
var ErrPlan = errors.New("schedule: want 0 < min <= mean")

// Plan holds the numbers of the gaps.
type Plan struct {
	mean, min time.Duration
}

// NewPlan checks and returns a plan: exponential gaps with the given mean,
// never below min and never above CapFactor × mean. The cap and the floor move
// the mean of what is drawn to Expected.
func NewPlan(mean, min time.Duration) (Plan, error) {
	if min <= 0 || mean < min {
		return Plan{}, fmt.Errorf("%w: mean %v, min %v", ErrPlan, mean, min)
	}
	return Plan{mean: mean, min: min}, nil
}

// Cap is the longest gap.
func (p Plan) Cap() time.Duration { return CapFactor * p.mean }

// Min is the shortest gap.
func (p Plan) Min() time.Duration { return p.min }

// Expected is the mean of Gap: floor + ∫ P(gap > t) dt from floor to cap.
func (p Plan) Expected() time.Duration {
	m := float64(p.mean)
	return p.min + time.Duration(m*(math.Exp(-float64(p.min)/m)-math.Exp(-CapFactor)))
}

// Gap draws the time until the next challenge. r must be crypto/rand outside of
// tests: who can guess it can hide between two challenges.
func (p Plan) Gap(r io.Reader) (time.Duration, error) {
	u, err := uniform(r)
	if err != nil {
		return 0, err
	}
	d := time.Duration(-float64(p.mean) * math.Log(u))
	return min(max(d, p.min), p.Cap()), nil
}

// Burst draws a gap inside a burst, 0 to BurstSpan / BurstSize.
func Burst(r io.Reader) (time.Duration, error) {
	u, err := uniform(r)
	if err != nil {
		return 0, err
	}
	return time.Duration(u * float64(BurstSpan/BurstSize)), nil
}

// Jitter draws a time around d, from 3/4 to 5/4 of it: for what is to come
// about that often and not at a moment that is known.
func Jitter(r io.Reader, d time.Duration) (time.Duration, error) {
	u, err := uniform(r)
	if err != nil {
		return 0, err
	}
	return time.Duration((0.75 + u/2) * float64(d)), nil
}

// uniform draws from (0, 1] in steps of 2^-53.
func uniform(r io.Reader) (float64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("schedule: random source: %w", err)
	}
	return float64(binary.BigEndian.Uint64(b[:])>>11+1) / (1 << 53), nil
}
