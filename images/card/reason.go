package card

import "fmt"

// Reasons why the card is not believed or a trial was dropped.
const (
	ReasonSlotUnknown     = "slot-unknown"     // what runs is neither the active release nor the one on trial
	ReasonSlotPartition   = "slot-partition"   // the firmware started another partition than the slot's
	ReasonStateUnreadable = "state-unreadable" // no copy of the slot state is valid
	ReasonConfUnreadable  = "conf-unreadable"  // the configuration partition lacks a file or is no file system
	ReasonZymbitState     = "zymbit-state"     // the copy of a Zymbit module's directory is damaged, too large or no such thing
	ReasonAutoboot        = "autoboot-invalid" // autoboot.txt starts no boot partition
	ReasonSeedInvalid     = "seed-invalid"     // the operator's settings are wrong
	ReasonTrialAttempts   = "trial-attempts"   // a new release was started MaxAttempts times and never committed
	ReasonTrialFirmware   = "trial-firmware"   // the firmware went back to the active slot by itself
	ReasonTrialAborted    = "trial-aborted"    // the operator took a new release back
	ReasonTrialReplaced   = "trial-replaced"   // a newer update took the place of one that was never started
	ReasonTrialUnhealthy  = "trial-unhealthy"  // the health gate ran out of time in the last attempt
)

// Error is a refusal with its typed reason. Detail is for people.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
