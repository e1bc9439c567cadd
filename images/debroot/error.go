package debroot

import (
	"fmt"
)

// Reason classifies a refused build; it appears in messages and docs by this name.
type Reason string

// Reasons.
const (
	ReasonOptions     Reason = "image-options"      // an option is missing or out of range
	ReasonLabInReal   Reason = "lab-channel"        // an image for real machines would hold the lab's command channel
	ReasonUnsafeTree  Reason = "image-unsafe"       // the tree has a login, a password or the like
	ReasonMissing     Reason = "image-missing"      // the recipe names what no package has
	ReasonTooLarge    Reason = "image-too-large"    // an artefact is over its target
	ReasonNotStatic   Reason = "binary-not-static"  // a program of ours needs a loader
	ReasonCacheBroken Reason = "image-cache-broken" // a cached stage is not what it was
	ReasonRoot        Reason = "root-differs"       // a file inside a root image is not the one described
)

// Error is a refused build.
type Error struct {
	Reason Reason
	Msg    string
	Err    error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s (%s)", e.Msg, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Refuse returns an Error with a formatted message.
func Refuse(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Msg: fmt.Sprintf(format, args...)}
}
