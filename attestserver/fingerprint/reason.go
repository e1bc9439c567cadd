package fingerprint

import "fmt"

// Reasons why a record, an approval or an opening is refused.
const (
	ReasonNone    = "fingerprint-none"       // nothing is enrolled of this machine
	ReasonRecord  = "fingerprint-unreadable" // a stored record is broken, or its root is not of its parts
	ReasonPart    = "fingerprint-no-part"    // there is no such part to open
	ReasonOpening = "opening-invalid"        // an opening does not prove what it says

	ReasonApprovalKeys      = "approval-no-keys"   // no operator keys are configured
	ReasonApprovalSignature = "approval-signature" // not signed by an operator
	ReasonApprovalMalformed = "approval-malformed" // not the one strict encoding, or a value out of range
	ReasonApprovalMachine   = "approval-machine"   // of another machine
	ReasonApprovalStale     = "approval-stale"     // of an earlier fingerprint: it was used, or overtaken
	ReasonApprovalRoot      = "approval-root"      // approves something else than what waits now
	ReasonApprovalNothing   = "approval-nothing"   // nothing waits for an approval
	ReasonApprovalEnrolling = "approval-enrolling" // the enrolling boots are not over
)

// Error is a refusal with its typed reason. Detail never holds a salt.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
