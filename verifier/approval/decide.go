package approval

import "time"

// Action is what a permission is for.
type Action string

// Actions. A load needs an approval of the image, a start also one of the profile
// and the purpose.
const (
	Load  Action = "load"
	Start Action = "start"
)

// Request is what somebody wants to do with an image. For Start, Profile is what
// the container asks for, with every field filled in as it would run: the guard
// begins with what was approved where the caller said nothing.
type Request struct {
	Action  Action
	Image   Image
	Purpose string   // of Start
	Profile *Profile // of Start
	Caller  string   // who asks, for the log: "uid 971"; at most 200 bytes
}

// Permission is an answer of yes. It stands in the log before anybody has it.
type Permission struct {
	Index    int64     // of its entry in the log
	Approval string    // digest of the approval that it rests on, "sha256:…"
	Name     string    // of the approved thing
	Version  uint64    // of the approval
	Image    Image     // all three digests
	Profile  Profile   // to run with: of Start what was asked, of Load what was approved
	NotAfter time.Time // of the approval
}

// Decider answers requests. record.Record is the one that keeps the answers;
// whoever gets an error must do nothing, whatever the error is. The error is an
// *Error with its reason where an approval was missing or did not fit, and any
// other error where the log could not be written.
type Decider interface {
	Decide(Request) (Permission, error)
}
