// Package clock lets time come in as a value, so that tests own it.
package clock

import "time"

// Clock tells the time and waits.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

// Real is the machine's clock.
type Real struct{}

// Now returns the wall time with its monotonic reading.
func (Real) Now() time.Time { return time.Now() }

// After waits as time.After does.
func (Real) After(d time.Duration) <-chan time.Time { return time.After(d) }
