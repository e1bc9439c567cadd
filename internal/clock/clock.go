// Package clock lets time come in as a value, so that tests own it.
package clock

import "time"

// Clock tells the time and waits.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

// Alarm is a Clock that also calls: f runs in a goroutine of its own when d is over.
type Alarm interface {
	Clock
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is one call that is to come. Reset has it come after d from now on, also again.
type Timer interface {
	Reset(d time.Duration) bool
	Stop() bool
}

// Real is the machine's clock.
type Real struct{}

// Now returns the wall time with its monotonic reading.
func (Real) Now() time.Time { return time.Now() }

// After waits as time.After does.
func (Real) After(d time.Duration) <-chan time.Time { return time.After(d) }

// AfterFunc calls as time.AfterFunc does.
func (Real) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
