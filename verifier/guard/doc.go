// Package guard stands between everybody and Docker's engine: the only socket of
// the engine that others can reach is the guard's. It allows what its table names
// and nothing else, asks for a permission (package approval) before an image is
// loaded or a container is started, writes the container's configuration itself,
// reads it back, and watches what runs. Every refusal is in the log before the
// caller has it.
//
// The second lock is package lock: whoever reaches the engine's own socket gets
// nothing there either, because only requests of this process carry a stamp.
//
// What root on the machine can do all the same stands in docs/verifier.md.
// cmd/verifierd and the lab use this package.
package guard

import (
	"errors"
	"fmt"

	"portcullis/verifier/approval"
)

// Reasons of refusals. Those of package approval and stamp come beside them.
const (
	ReasonMalformed    = "http-malformed"         // not HTTP as a client writes it
	ReasonHTTPVersion  = "http-version"           // HTTP/1.0, HTTP/2: the engine and we could read them differently
	ReasonPath         = "api-path"               // not the one plain form of a path
	ReasonVersion      = "api-version"            // of the API: older than 1.41 or newer than the engine's
	ReasonEndpoint     = "api-endpoint"           // nothing that the guard passes on
	ReasonQuery        = "api-query"              // a parameter that is not in the table, twice, or not of its form
	ReasonHeader       = "api-header"             // a header that changes what a request means
	ReasonUpgrade      = "api-upgrade"            // an upgrade where there is none
	ReasonLength       = "body-length"            // no length, chunked, too long, or a body where none is
	ReasonType         = "body-type"              // another content type than the endpoint's
	ReasonJSON         = "body-json"              // not strict JSON: a key twice, wrong nesting, more than one value
	ReasonField        = "body-field"             // a field that does not exist, or one that a caller may not set
	ReasonImage        = "image-not-loaded"       // not an image that the guard loaded
	ReasonImageFormat  = "image-format"           // an archive that holds no sound image
	ReasonImageStore   = "image-store"            // the engine holds something else than what was loaded
	ReasonContainer    = "container-unknown"      // not a container that the guard made
	ReasonDiffers      = "container-differs"      // the engine made something else than was asked for
	ReasonProgram      = "program-in-container"   // a program was started inside a running container
	ReasonUnknownImage = "image-unknown"          // the engine holds an image that the guard did not load
	ReasonBinary       = "engine-program-changed" // a program of the engine is not what it was at the start
	ReasonUnfit        = "node-unfit"             // a self-test failed: nothing is started
	ReasonEngine       = "engine-failed"          // the engine did not do it, or does not answer
	ReasonLog          = "log-failed"             // what cannot be written down does not happen
)

// Error is a refusal with its typed reason. Detail is for people.
type Error struct{ Reason, Detail string }

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{reason, fmt.Sprintf(format, args...)}
}

// reasonOf finds the typed reason in err; an error without one is the engine's.
func reasonOf(err error) (reason, detail string) {
	var own *Error
	var approvals *approval.Error
	switch {
	case errors.As(err, &own):
		return own.Reason, own.Detail
	case errors.As(err, &approvals):
		return approvals.Reason, approvals.Detail
	}
	return ReasonEngine, err.Error()
}

// Approvals is what the guard asks. Package record is the one that keeps a log;
// where it does not answer the guard does nothing.
type Approvals interface {
	// Decide writes its answer into the log before it returns.
	approval.Decider
	// Approved looks up how an image may run for a purpose. It gives no permission and writes nothing.
	Approved(i approval.Image, purpose string) (approval.Profile, error)
	// Standing tells whether what was permitted may go on. It writes nothing.
	Standing(p approval.Permission) error
	// Refused writes a refusal that is not Decide's into the log.
	Refused(Refusal) error
	// Changed gets a value after an approval or a revocation.
	Changed() <-chan struct{}
}

// Refusal is a no of the guard or of the second lock.
type Refusal struct {
	Action string // one of Action*
	Reason string // typed
	Detail string // printable, at most 400 bytes
	Image  string // what the caller or the engine calls it, or ""
	Caller string // "uid 971", or "engine" for what nobody asked for
}

// Actions of a Refusal.
const (
	ActionAPI     = "api"        // a request on the guard's socket
	ActionConnect = "connection" // what was no request
	ActionEngine  = "engine-api" // a request on the engine's own socket, refused by package lock
	ActionRun     = "run"        // a container that ran is ended
	ActionHold    = "hold"       // an image in the store, or a program of the engine
)
