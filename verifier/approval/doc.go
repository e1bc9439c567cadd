// Package approval says which container image may run, what for and how: the
// approval that k of n approvers sign, its revocation, the requests that are held
// against them and the answers. It is pure: it reads no clock and no file. What
// keeps the answers is package record; what asks is the guard.
//
// Absence is denial: without approvers nothing is approved, an image without an
// approval has no permission, and a profile that asks for more than was approved
// gets nothing, not less.
package approval

import (
	"errors"
	"fmt"
)

// Reasons why an approval, a revocation or a request is refused. They stand under
// these names in the log, in events and in the documentation.
const (
	ReasonMalformed  = "approval-malformed"  // not the one strict encoding, or a value out of its range
	ReasonSignature  = "approval-signature"  // no signature of an approver, or one that does not verify
	ReasonThreshold  = "approval-threshold"  // fewer approvers than the policy asks for
	ReasonApprovers  = "approval-approvers"  // the file of approvers cannot be used, or is not there
	ReasonUnapproved = "image-unapproved"    // no approval names this image
	ReasonDiffers    = "image-differs"       // an approval names one of its digests, and not the others
	ReasonRevoked    = "image-revoked"       // the image or every approval that fits was revoked
	ReasonNotYet     = "approval-not-yet"    // before not_before
	ReasonExpired    = "approval-expired"    // at or after not_after
	ReasonOlder      = "approval-older"      // a newer version of the same name was approved
	ReasonPurpose    = "approval-purpose"    // approved for something else
	ReasonProfile    = "approval-profile"    // asks for more than was approved
	ReasonUncosigned = "approval-uncosigned" // the witnesses that are needed have not seen it yet
)

// Error is a refusal with its typed reason. Detail is for people and holds no secret.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Reason returns the typed reason in err, "" where there is none.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
