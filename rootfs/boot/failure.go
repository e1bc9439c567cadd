// Package boot holds the pieces that a first program of an initramfs is made
// of: stage lines on the console, mounts, modules, network links, loop and
// device-mapper devices, and the step into the real root. It may be called by
// rootfs/hpcinit and the Pi's init only; it makes system calls and keeps no state.
package boot

import (
	"errors"
	"fmt"
)

// Reason is the typed name of a failure: the same word on the console, in logs
// and in the documentation.
type Reason string

// Failure is an error that ends the boot.
type Failure struct {
	Reason Reason
	Err    error // what was tried and what came back
}

func (f *Failure) Error() string { return string(f.Reason) + ": " + f.Err.Error() }

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Failf makes a Failure. The format may wrap a cause with %w.
func Failf(r Reason, format string, args ...any) error {
	return &Failure{Reason: r, Err: fmt.Errorf(format, args...)}
}

// ReasonUnknown stands for an error that nobody gave a reason: a defect of this program.
const ReasonUnknown Reason = "unknown"

// ReasonPanic stands for a recovered panic.
const ReasonPanic Reason = "panic"

// ReasonOf returns the outermost reason in err's chain.
func ReasonOf(err error) Reason {
	var f *Failure
	if errors.As(err, &f) {
		return f.Reason
	}
	return ReasonUnknown
}

// detailOf is the text behind the outermost reason.
func detailOf(err error) string {
	var f *Failure
	if errors.As(err, &f) {
		return f.Err.Error()
	}
	return err.Error()
}

// Guard runs f and turns a panic into a Failure. Every goroutine of an init
// must run under it: an unrecovered panic of PID 1 is a kernel panic, which
// shows no reason.
func Guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Failf(ReasonPanic, "%v", p)
		}
	}()
	return f()
}
