package update

import "fmt"

// Reasons why an update, a commit or an abort is refused or failed.
const (
	ReasonNotPi        = "update-not-pi"        // this system was not started by pi-init
	ReasonBusy         = "update-busy"          // another update or commit is under way
	ReasonTrialRunning = "update-trial-running" // a new release is on trial: its fall-back is not overwritten
	ReasonNoTrial      = "update-no-trial"      // there is nothing to take back
	ReasonDevice       = "update-device"        // a part of the card is missing, too small, in use or broken
	ReasonReadBack     = "update-read-back"     // the card gives other bytes than were written
	ReasonUnhealthy    = "update-unhealthy"     // the health gate did not see a working system in time
	ReasonCounter      = "update-counter"       // the release is committed, the chip's counter could not be raised
)

// Error is a refusal with its typed reason.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Reason + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Err: fmt.Errorf(format, args...)}
}
