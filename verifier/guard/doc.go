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
	"portcullis/verifier/image"
	"portcullis/verifier/record"
)

// Reasons of refusals. Those of packages approval, image and stamp come beside them.
const (
	ReasonMalformed    = "http-malformed"         // not HTTP as a client writes it
	ReasonCrowd        = "callers-too-many"       // connections of others than root
	ReasonPace         = "caller-pace"            // loads and starts of one caller who is not root
	ReasonHTTPVersion  = "http-version"           // HTTP/1.0, HTTP/2: the engine and we could read them differently
	ReasonPath         = "api-path"               // not the one plain form of a path
	ReasonVersion      = "api-version"            // of the API: older than 1.41 or newer than the engine's
	ReasonEndpoint     = "api-endpoint"           // nothing that the guard passes on
	ReasonQuery        = "api-query"              // a parameter that is not in the table, twice, or not of its form
	ReasonHeader       = "api-header"             // a header that changes what a request means
	ReasonUpgrade      = "api-upgrade"            // an upgrade where there is none
	ReasonLength       = "body-length"            // no length, chunked, too long, or a body where none is
	ReasonType         = "body-type"              // another content type than the endpoint's
	ReasonSlow         = "body-slow"              // an archive that comes too slowly
	ReasonRoom         = "load-room"              // an archive for which the disk has no room beside the log
	ReasonJSON         = "body-json"              // not strict JSON: a key twice, wrong nesting, more than one value
	ReasonField        = "body-field"             // a field that does not exist, or one that a caller may not set
	ReasonImage        = "image-not-loaded"       // not an image that the guard loaded
	ReasonImageStore   = "image-store"            // the engine holds something else than what was loaded
	ReasonContainer    = "container-unknown"      // not a container that the guard made
	ReasonDiffers      = "container-differs"      // the engine made something else than was asked for
	ReasonProgram      = "program-in-container"   // a program was started inside a running container
	ReasonUnknownImage = "image-unknown"          // the engine holds an image that the guard did not load
	ReasonBinary       = "engine-program-changed" // a program of the engine is not what it was at the start
	ReasonUnfit        = "node-unfit"             // a self-test failed: nothing is started
	ReasonEngine       = "engine-failed"          // the engine did not do it, or does not answer
	ReasonGate         = "start-not-held"         // the engine's runtime asks for what is not being started, or did not ask
	ReasonSlices       = "engine-slices"          // the engine's control groups are not systemd's: a slice's rules would not hold
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
	var images *image.Error
	switch {
	case errors.As(err, &images):
		return images.Reason, images.Detail
	case errors.As(err, &own):
		return own.Reason, own.Detail
	case errors.As(err, &approvals):
		return approvals.Reason, approvals.Detail
	}
	return ReasonEngine, err.Error()
}

// Approvals is what the guard asks: *record.Record, whose log this is. Where it
// does not answer the guard does nothing.
type Approvals interface {
	// Decide writes its answer into the log before it returns.
	approval.Decider
	// Approvals lists what is approved. Looking gives no permission.
	Approvals() []record.Listed
	// Holds tells whether what was permitted by an approval may go on.
	Holds(approvalDigest string) error
	// Refuse writes a refusal that is not Decide's.
	Refuse(record.Refusal) error
	// Changed is closed at the next approval or revocation.
	Changed() <-chan struct{}
}

// Actions of a refusal, beside those of package approval.
const (
	ActionAPI     = "api"        // a request on the guard's socket
	ActionConnect = "connection" // what was no request
	ActionEngine  = "engine-api" // a request on the engine's own socket, refused by package lock
	ActionRun     = "run"        // a container that ran is ended
	ActionHold    = "hold"       // an image in the store, or a program of the engine
)

// approved looks up how an image may run for a purpose: the newest approval that
// would be believed, or why there is none.
func approved(list []record.Listed, i approval.Image, purpose string) (approval.Profile, error) {
	var no error = &approval.Error{Reason: approval.ReasonUnapproved, Detail: "no approval names " + i.Config}
	var best *approval.Approval
	for _, l := range list {
		a := l.Approval
		switch {
		case !a.Image.Equal(i):
		case a.Purpose != purpose:
			if approval.Reason(no) == approval.ReasonUnapproved {
				no = &approval.Error{Reason: approval.ReasonPurpose, Detail: fmt.Sprintf("for %q, approved is %q", purpose, a.Purpose)}
			}
		case l.Refused != nil:
			no = l.Refused
		case best == nil || a.Version > best.Version:
			best = a
		}
	}
	if best == nil {
		return approval.Profile{}, no
	}
	return best.Profile, nil
}
