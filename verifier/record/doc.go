// Package record is the append-only log of the Verification module: approvals,
// revocations, who the approvers are, every permission given and every refusal.
// Each entry is on the disk before it takes effect.
//
// What may run follows from the entries alone: State replays them. The Pi builds
// its view so at each start, and an auditor on another machine the same view of a
// copy; a permission that does not follow from the entries before it is found.
//
// Record writes; Audit reads. verifierd and the portcullis command may call it.
package record

import (
	"errors"
	"fmt"
)

// Reasons why a log of approvals is not believed.
const (
	ReasonEntry      = "record-entry"       // an entry that does not parse, or a value out of its range
	ReasonTime       = "record-time"        // an entry that is older than the one before it
	ReasonUnfounded  = "record-unfounded"   // a permission that does not follow from the entries before it
	ReasonForeign    = "record-foreign"     // approvers that the auditor does not know
	ReasonWitnesses  = "record-witnesses"   // witnesses or a quorum that cannot be
	ReasonRolledBack = "record-rolled-back" // somebody has seen more of this log than is there
)

// Error is what is wrong; Reason is one of Reason*.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Reason returns the typed reason of this package in err, "" where there is none.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
