// Package policy says what follows from what is known of a PC: rules as data, each
// a condition in CEL (the Common Expression Language) over typed claims and a list of actions.
// It is pure: attestserver/server makes the claims, package action carries out
// what fires, and cmd/portcullis checks, tests and explains policies.
//
// A policy adds to the state machine of package verdict and takes nothing from
// it: there is no action that makes a PC trusted.
package policy

import (
	"fmt"
	"time"
)

// Limits of claims.
const (
	MaxFindings = 64  // as many as a verdict keeps
	MaxTasks    = 64  //
	MaxText     = 256 // bytes of any text
)

// Claims are all that a rule can ask about, at one moment.
type Claims struct {
	State      string        // unknown, enrolling, trusted, suspect, quarantined
	StateAge   time.Duration // since it became so
	Reason     string        // typed reason of the last change of state
	Tier       string        // T0, T1, T2
	Posture    string        // of the Pi: none, card-theft, signed-boot, signed-boot+otp
	Session    string        // boot session; "" before the first
	SessionAge time.Duration // since attestd learned of the session
	Image      string        // name of the image that the agent claimed; "" before the claim
	Version    int64         // of that image
	LabImage   bool          // the image has a command channel
	Challenges int64         // judged in this session
	Failures   int64         // of them
	Findings   []Finding     // of this session, the newest first
	Drift      string        // highest class among the findings about hardware: "", info, soft, fatal
	Warnings   []string
	Agent      bool     // the agent's channel is up
	Gateway    bool     // gatewayd answers; while it does not, what follows is what it said last
	Carrier    bool     // the cable carries
	LinkLosses int64    // times that the cable lost its carrier in this session
	Tasks      []string // tasks with a grant, each once
	Violations int64    // packets dropped since gatewayd's tables were made
	Banned     bool
}

// Finding is one finding of the session.
type Finding struct {
	Probe  string        `cel:"probe"`
	Reason string        `cel:"reason"`
	Class  string        `cel:"class"` // info, soft, fatal
	Detail string        `cel:"detail"`
	Age    time.Duration `cel:"age"`
}

// Check refuses claims that attestd never makes: explain and test read them from files.
func (c *Claims) Check() error {
	if len(c.Findings) > MaxFindings || len(c.Tasks) > MaxTasks || len(c.Warnings) > MaxFindings {
		return fmt.Errorf("claims: more than %d findings or warnings, or more than %d tasks", MaxFindings, MaxTasks)
	}
	texts := append([]string{c.State, c.Reason, c.Tier, c.Posture, c.Session, c.Image, c.Drift}, c.Tasks...)
	for _, f := range c.Findings {
		texts = append(texts, f.Probe, f.Reason, f.Class, f.Detail)
		if f.Class != "info" && f.Class != "soft" && f.Class != "fatal" {
			return fmt.Errorf("claims: the class of a finding is %q; it is info, soft or fatal", f.Class)
		}
		if f.Age < 0 {
			return fmt.Errorf("claims: a finding from the future")
		}
	}
	for _, s := range append(texts, c.Warnings...) {
		if len(s) > MaxText {
			return fmt.Errorf("claims: a text of %d bytes, at most %d", len(s), MaxText)
		}
	}
	switch {
	case !isState(c.State):
		return fmt.Errorf("claims: state %q is none of unknown, enrolling, trusted, suspect, quarantined", c.State)
	case c.StateAge < 0, c.SessionAge < 0, c.Version < 0, c.Challenges < 0, c.Failures < 0, c.LinkLosses < 0, c.Violations < 0:
		return fmt.Errorf("claims: a negative age or count")
	}
	return nil
}

func isState(s string) bool {
	switch s {
	case "unknown", "enrolling", "trusted", "suspect", "quarantined":
		return true
	}
	return false
}
