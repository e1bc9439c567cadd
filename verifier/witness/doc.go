// Package witness has the C2SP tlog-witness protocol: a witness signs that a log
// has only grown since it looked last, and refuses to sign what is not the
// continuation of that. Whoever asks for the signatures of several witnesses needs
// not believe the log's owner that everybody is shown the same log.
//
// Server is the witness, Client asks one. Signatures are those of C2SP
// tlog-cosignature with Ed25519 (type 4). verifierd has both; a test runs one
// against the other, and against requests that are built by hand.
package witness

import (
	"errors"
	"fmt"
)

// Reasons why a witness, or what it answered, is of no use.
const (
	ReasonKey         = "witness-key"         // no key of a witness: name+hash+base64
	ReasonRequest     = "witness-request"     // does not parse
	ReasonUnknownLog  = "witness-unknown-log" // the witness does not know this log
	ReasonSignature   = "witness-signature"   // not signed by the log's key
	ReasonConflict    = "witness-conflict"    // the witness has seen another size
	ReasonProof       = "witness-proof"       // not the continuation of what was seen
	ReasonState       = "witness-state"       // what the witness remembers cannot be read
	ReasonUnreachable = "witness-unreachable" // no answer, or one that nobody can use
)

// Error is a refusal with its typed reason. Size is what the witness has seen,
// with ReasonConflict.
type Error struct {
	Reason string
	Detail string
	Size   int64
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) *Error {
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
