// Package services keeps the Pi's own services running as containers of approved
// images: in their order, with what their units have and no more, again after a
// failure, and not where somebody else runs them. What a service may have is written
// down in package declared; an approval has to cover it, and package guard makes the container.
//
// A service that is done for now ends by itself and rests until its bell rings: pxed
// serves nothing while the PC runs.
//
// cmd/verifierd runs it. Nothing here is stopped when verifierd ends: the next one
// finds the containers and goes on with them.
package services

import (
	"context"
	"time"

	"portcullis/verifier/engine"
	"portcullis/verifier/guard"
)

// ReasonElsewhere: somebody answers at the service's socket already, its unit perhaps.
const ReasonElsewhere = "service-elsewhere"

// ReasonSilent: the container runs, and nothing answers at the service's socket.
const ReasonSilent = "service-silent"

// ReasonEnded: the service ended, and is started again.
const ReasonEnded = "service-ended"

// ReasonUnknown: the engine is fit, and did not tell for a minute how the service's
// container stands. It is ended, and the service is started again.
const ReasonUnknown = "service-unknown"

// Guard is what the keeper asks of package guard; *guard.Guard is the one.
type Guard interface {
	Fit() error
	Owned() []guard.Owned
	StartOwn(context.Context, guard.Own) (string, error)
	EndOwn(ctx context.Context, id string, grace time.Duration) error
	ImportOwn(ctx context.Context, purpose, file string) error
	Refused(guard.Own, error) error
	Standing(ctx context.Context, id string) (engine.Standing, error)
	Ended(ctx context.Context, id string) error
	LastWords(ctx context.Context, id string) string
}

// Approvals is the log: record.Record is the one.
type Approvals interface {
	// Changed is closed at the next approval or revocation.
	Changed() <-chan struct{}
}

// Service is one service as a container.
type Service struct {
	guard.Own
	Socket  string // it takes connections there when it is ready
	Archive string // its image, as it came with the system; "" = it is loaded otherwise
	// Offer brings the approval that came with the archive, once, where there is one: not
	// before the engine is fit, so that no approval counts whose image is not there yet.
	Offer func() error

	// RestExit is the exit status by which it says that it is done for now, and Bell
	// returns when it is wanted again, and why. Without a bell it never rests.
	RestExit int
	Bell     func(context.Context) (why string, err error)
}
