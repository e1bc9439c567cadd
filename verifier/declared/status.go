package declared

import "time"

// States of a service.
const (
	StateWaiting   = "waiting"   // for the engine, or for the service before it
	StateStarting  = "starting"  // the container runs, the service does not answer yet
	StateRunning   = "running"   //
	StateResting   = "resting"   // it is done for now
	StateRefused   = "refused"   // not approved, not loaded, revoked: reason and detail say which
	StateFailed    = "failed"    // it ended, and waits before it is started again
	StateElsewhere = "elsewhere" // somebody else runs it
)

// StatusPath is where verifierd answers GET with a list of Status, on its socket.
const StatusPath = "/services"

// Status of a service.
type Status struct {
	Service   string    `json:"service"`
	State     string    `json:"state"`
	Since     time.Time `json:"since"`
	Container string    `json:"container,omitempty"`
	Starts    uint64    `json:"starts"` // since verifierd started
	Reason    string    `json:"reason,omitempty"`
	Detail    string    `json:"detail,omitempty"`
}
