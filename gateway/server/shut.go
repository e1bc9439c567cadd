package server

import (
	"errors"
	"slices"
	"time"

	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/internal/event"
)

// settleRetry is how long after a failure the rest of a shut run is tried again.
const settleRetry = time.Second

// shuts tells whether the way from before to next only takes away what a run lets
// through, so that it may be answered before the state file is written: a gatewayd that is
// killed or loses its power in between comes back with the file of before, and
// that opens nothing that next does not.
func shuts(before, next policy.Policy) bool {
	return before.Session != "" && next.Session == before.Session &&
		slices.Contains([]policy.Phase{policy.Run, policy.Attest}, before.Phase) &&
		slices.Contains([]policy.Phase{policy.Attest, policy.Quarantine}, next.Phase)
}

// shut ends a run by the least that ends it: the kernel's set of the running port is
// emptied, and read back. Each rule of a granted flow, old or new, asks that set. The
// routing, which the kernel locks against every change of any interface, the tables of
// the new phase and the state file follow when the caller has its answer: settle.
func (g *Gateway) shut(next policy.Policy, reason string) error {
	before := g.policy
	if err := g.opt.Kernel.SetRun(ruleset.Build(g.timed(next))); err != nil {
		return err
	}
	g.policy, g.runEnd, g.unsettled = next, time.Time{}, g.opt.Clock.Now()
	if next.Phase != before.Phase {
		g.opt.Events.Emit("phase", event.Fields{"phase": string(next.Phase), "session": next.Session, "reason": reason})
	}
	return nil
}

// errNotStored: the kernel enforces it, and the state file would open more after a crash.
var errNotStored = errors.New("server: the state file has the session in its boot yet: the disk has failed")

// leftBehind is nil where the file of before is one that shuts counts on. Where the disk has failed since
// the session's boot it is not: then the answer waits for the disk, while the port is shut already.
func (g *Gateway) leftBehind() error {
	if g.past == g.policy.Session {
		return nil
	}
	g.settle()
	if g.past != g.policy.Session {
		return errNotStored
	}
	return nil
}

// settle does what shut has left. While it fails the port stays shut, and it is tried again.
func (g *Gateway) settle() {
	if g.unsettled.IsZero() || g.opt.Clock.Now().Before(g.unsettled) {
		return
	}
	g.unsettled = g.opt.Clock.Now().Add(settleRetry)
	if err := g.opt.Wire.Route(false); err != nil {
		g.failed(err) // the tables drop what routing would still carry
	}
	if err := g.enforce(g.policy); err != nil {
		g.failed(err)
		return
	}
	if err := g.save(); err != nil {
		g.failed(err)
		return
	}
	g.unsettled = time.Time{}
	g.opt.Events.Emit("phase.stored", event.Fields{"phase": string(g.policy.Phase), "session": g.policy.Session})
}
