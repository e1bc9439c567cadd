package protocol

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// MaxRounds bounds the work of op time.
const MaxRounds = 1 << 20

// TimeParams asks for a piece of work: Rounds times SHA-256, one after another.
type TimeParams struct {
	Rounds int `json:"rounds"`
}

// Check bounds the work.
func (p *TimeParams) Check() error {
	if p.Rounds < 1 || p.Rounds > MaxRounds {
		return fmt.Errorf("%d rounds, want 1 to %d", p.Rounds, MaxRounds)
	}
	return nil
}

// TimeData is the answer of op time.
type TimeData struct {
	RawNs     int64  `json:"raw_ns"`      // CLOCK_MONOTONIC_RAW before the work
	BootMs    int64  `json:"boot_ms"`     // CLOCK_BOOTTIME before the work
	WallMs    int64  `json:"wall_ms"`     // CLOCK_REALTIME at the same moment
	WorkNs    int64  `json:"work_ns"`     // what the work took
	Source    string `json:"source"`      // the kernel's clock source: tsc, hpet, kvm-clock …
	MHz       int64  `json:"mhz"`         // of the first processor as /proc/cpuinfo says, 0 where it does not
	TotalJiff uint64 `json:"total_ticks"` // processor time of all processors since boot, in clock ticks
	StealJiff uint64 `json:"steal_ticks"` // of it, what a hypervisor gave to others
}

// Check refuses what no clock shows.
func (d *TimeData) Check() error {
	if d.RawNs < 0 || d.BootMs < 0 || d.WorkNs < 0 || d.MHz < 0 || d.StealJiff > d.TotalJiff {
		return errors.New("a clock below zero")
	}
	return short("time", d.Source)
}

// TimeWork does the work: it begins with the op's key, so that it cannot have
// been done before.
func (k OpKey) TimeWork(rounds int) [32]byte {
	sum := k.Digest("time-work", nil, nil)
	for range rounds {
		sum = sha256.Sum256(sum[:])
	}
	return sum
}
