// Package server is gatewayd's state machine and its Connect service: it moves
// the policy of the PC's port, makes the kernel enforce each step before it
// answers, and keeps what must survive a restart. cmd/gatewayd runs it.
package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"portcullis/gateway/nft"
	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/gateway/violation"
	"portcullis/internal/clock"
	"portcullis/internal/event"
)

// Kernel enforces; package nft is the real one.
type Kernel interface {
	// Apply returns when rs is in force, whole and at once, bans and counters kept.
	Apply(rs *ruleset.Ruleset) error
	// SetRun renews the time of the run only, or ends it where rs has none: it returns when
	// the kernel shows that it is over. SetGrants replaces the granted targets only.
	SetRun(rs *ruleset.Ruleset) error
	SetGrants(rs *ruleset.Ruleset) error
	Counters() (map[string]uint64, error)
	BanLeft() (time.Duration, error)
	// Grants reads the granted targets with the time the kernel leaves them.
	Grants() (left map[policy.Target]time.Duration, found bool, err error)
	// LinkBound is nil when the link table sits on the port.
	LinkBound() error
	// Restore puts back what somebody else changed, and tells what that was.
	Restore() (found []nft.Drift, err error)
}

// Wire is the rest of what the machine must do around the tables.
type Wire interface {
	// Cut forgets every tracked flow of the PC's address.
	Cut(pc netip.Addr) error
	// Route lets granted packets through the routing, or stops it.
	Route(on bool) error
	// Wake sends the magic packet out of the PC's port.
	Wake() error
}

// Options of New.
type Options struct {
	Port     policy.Port
	StateDir string // gatewayd's own, made when missing
	Boot     string // the kernel's id of this boot
	Kernel   Kernel
	Wire     Wire
	Clock    clock.Clock
	Events   *event.Writer
}

// Gateway owns the policy. One goroutine, Run, moves it; everybody else asks.
type Gateway struct {
	opt      Options
	path     string
	do       chan func()
	done     chan struct{}
	policy   policy.Policy
	runEnd   time.Time
	index    int  // of the port's interface when last seen; 0 = none
	link     bool // it carries
	losses   uint64
	grants   uint64    // given and ended since New
	bell     bell      // rung by each change of grants and carrier, and by violations
	told     time.Time // of violations
	dirty    bool      // the state file is older than the policy
	past     string    // session that the state file says is past its boot: a run is answered for no other
	closed   bool      // the end is in order: what is written now are the last words
	reopened bool      // New found the file closed
	ring     violation.Ring

	restoreAt   time.Time     // what could not be put back is tried again; zero = nothing is to be
	restoreWait time.Duration // was waited for it, twice as long each time
	editor      nft.Editor    // who changed it

	unsettled time.Time // a run was shut: when its tables and the state file are written; zero = nothing is left
}

// New reads the state that a former life left, and puts the kernel under it:
// default deny is in force when it returns. A run comes back as attest, or as quarantine where
// the Pi lost its power (lost); a state file that cannot be read costs an event and begins at idle.
func New(opt Options) (*Gateway, error) {
	if err := os.MkdirAll(opt.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("server: state directory: %w", err)
	}
	g := &Gateway{opt: opt, path: filepath.Join(opt.StateDir, "state.json"), do: make(chan func()), done: make(chan struct{}),
		bell: newBell()}
	p, was, found, err := loadState(g.path, opt.Port)
	if err != nil {
		opt.Events.Emit("state.refused", event.Fields{"reason": "state-unreadable", "detail": err.Error()})
	}
	g.policy, g.past = p, pastBoot(p)
	if !found {
		g.policy.Generation = newGeneration()
	} else {
		tables, err := g.adoptGrants()
		if err != nil {
			return nil, err
		}
		switch {
		case was.Closed || was.Boot == opt.Boot:
		case was.Boot != "":
			g.lost(reasonPowerLost)
		case !tables:
			g.lost(reasonBootUnknown)
		}
	}
	if err := g.enforce(g.policy); err != nil {
		return nil, err
	}
	if err := opt.Wire.Route(false); err != nil {
		return nil, err
	}
	if found {
		// Before anybody is answered the file has to say that it is not closed any more, and in which boot.
		// One that is not closed and names a boot says no more than is true: as it is, the session
		// ends no later than it does with what would be written now. So a failed disk keeps nobody out.
		if err := g.save(); err != nil {
			if was.Closed || was.Boot == "" {
				return nil, err
			}
			g.failed(err)
		}
	}
	g.reopened = was.Closed
	return g, nil
}

// Abandon is for a start that fails between New and Run, so that nobody has been answered: a
// file that was closed is closed again. One that was not stays so, as after any end out of order.
func (g *Gateway) Abandon() error {
	if !g.reopened {
		return nil
	}
	g.closed = true
	return g.save()
}

// Why a session of before is quarantined where gatewayd begins.
const (
	reasonPowerLost = "power-lost" // the file is of another boot of the Pi, and nobody closed it
	// The file is of a gatewayd that wrote neither boot nor closed, and the kernel has none of its
	// tables: the Pi was booted since, in order or not. Where it has them it is the same boot: they outlive
	// gatewayd and nothing else, so that going on opens nothing that the former gatewayd had shut.
	reasonBootUnknown = "boot-unknown"
)

// lost is for a file of another boot of the Pi that is not closed: it lost its power. A
// quarantine may have been answered before that and be on no disk, not even on attestd's, and
// nobody watched the cable. So the session that was booted gets no other run.
func (g *Gateway) lost(reason string) {
	if g.policy.Session == "" || g.policy.Phase != policy.Attest {
		return // nobody was trusted
	}
	g.policy.Phase = policy.Quarantine
	g.opt.Events.Emit("phase", event.Fields{"phase": string(g.policy.Phase), "session": g.policy.Session, "reason": reason})
}

// adoptGrants gives each stored grant the time it really has left. Where the
// kernel still counts one down, its count is right even if the clock was set meanwhile.
// It tells whether the kernel has tables of a former life.
func (g *Gateway) adoptGrants() (tables bool, err error) {
	left, tables, err := g.opt.Kernel.Grants()
	if err != nil {
		return false, err
	}
	now := g.opt.Clock.Now()
	var kept []policy.Grant
	for _, x := range g.policy.Grants {
		x.Left = min(x.NotAfter.Sub(now), policy.MaxGrant)
		if inKernel, ok := left[x.Target]; tables {
			if !ok {
				inKernel = 0
			}
			x.Left = min(x.Left, inKernel)
		}
		if x.Left <= 0 {
			g.grantEnded(x, "expired")
			continue
		}
		x.NotAfter = now.Add(x.Left)
		kept = append(kept, x)
	}
	g.policy.Grants = kept
	return tables, nil
}

// Run moves the policy until ctx ends: calls, the end of a run, the ends of grants.
// On the way out a run falls back, so that nothing passes without an owner.
func (g *Gateway) Run(ctx context.Context) error {
	defer close(g.done)
	for {
		g.settle()
		select {
		case <-ctx.Done():
			return g.end()
		case f := <-g.do:
			f()
		case <-g.nextEnd():
			g.endOfTime()
			g.restoreAgain()
		}
	}
}

// end closes a run, stores what was answered before the disk had it, and closes the file.
func (g *Gateway) end() (err error) {
	if g.policy.Phase == policy.Run {
		err = g.move(g.policy.Fallback(), "shutdown")
	}
	if !g.unsettled.IsZero() {
		g.unsettled = g.opt.Clock.Now() // after a failure, too: there is no later
	}
	g.settle()
	g.closed = true
	if failed := g.save(); failed != nil {
		g.failed(failed)
	}
	return err
}

// ask runs f in the owner's goroutine.
func (g *Gateway) ask(ctx context.Context, f func()) error {
	finished := make(chan struct{})
	select {
	case g.do <- func() { defer close(finished); f() }:
		<-finished
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-g.done:
		return errStopped
	}
}

// nextEnd waits for the nearest end; the kernel cuts at the same moment by itself.
func (g *Gateway) nextEnd() <-chan time.Time {
	var end time.Time
	if g.policy.Phase == policy.Run {
		end = g.runEnd
	}
	for _, x := range g.policy.Grants {
		if end.IsZero() || x.NotAfter.Before(end) {
			end = x.NotAfter
		}
	}
	for _, due := range []time.Time{g.unsettled, g.restoreAt} {
		if !due.IsZero() && (end.IsZero() || due.Before(end)) {
			end = due
		}
	}
	if end.IsZero() {
		return nil
	}
	return g.opt.Clock.After(max(end.Sub(g.opt.Clock.Now()), 0))
}

func (g *Gateway) endOfTime() {
	now := g.opt.Clock.Now()
	if g.policy.Phase == policy.Run && !g.runEnd.After(now) {
		if err := g.move(g.policy.Fallback(), "run-not-renewed"); err != nil {
			g.failed(err)
		}
	}
	next := g.policy
	next.Grants = nil
	var ended []policy.Grant
	for _, x := range g.policy.Grants {
		if x.NotAfter.After(now) {
			next.Grants = append(next.Grants, x)
		} else {
			ended = append(ended, x)
		}
	}
	if len(ended) == 0 {
		return
	}
	if err := g.setGrants(next); err != nil {
		g.failed(err)
	}
	g.policy = next // whatever the disk says, their time is over
	for _, x := range ended {
		g.grantEnded(x, "expired")
	}
}

// move makes next the policy: first the kernel, then the file, then the event.
// Routing is opened last and closed first. What only ends a run waits for neither: shut.
func (g *Gateway) move(next policy.Policy, reason string) error {
	before := g.policy
	if shuts(before, next) {
		err := g.shut(next, reason)
		if err == nil {
			return g.leftBehind()
		}
		g.failed(err) // the whole tables may do where the one set did not
	}
	if next.Phase != policy.Run && before.Phase == policy.Run {
		if err := g.opt.Wire.Route(false); err != nil {
			g.failed(err) // the tables drop what routing would still carry
		}
	}
	end := g.opt.Clock.Now().Add(next.RunFor)
	if err := g.enforce(next); err != nil {
		return err
	}
	g.policy, g.runEnd, g.unsettled = next, end, time.Time{}
	if next.Session != before.Session {
		for _, x := range before.Grants {
			g.grantEnded(x, reason)
		}
		// The marks shut the old flows out already; this makes room for equal port numbers.
		if err := g.opt.Wire.Cut(next.Address); err != nil {
			g.failed(err)
		}
	}
	if err := g.save(); err != nil {
		return err
	}
	if next.Phase == policy.Run {
		if err := g.opt.Wire.Route(true); err != nil {
			return err
		}
	}
	if next.Phase != before.Phase || next.Session != before.Session {
		g.opt.Events.Emit("phase", event.Fields{"phase": string(next.Phase), "session": next.Session, "reason": reason})
	}
	return nil
}

func (g *Gateway) enforce(p policy.Policy) error {
	return g.opt.Kernel.Apply(ruleset.Build(g.timed(p)))
}

// timed fills in what each grant has left now.
func (g *Gateway) timed(p policy.Policy) policy.Policy {
	now := g.opt.Clock.Now()
	list := append([]policy.Grant(nil), p.Grants...)
	for i := range list {
		list[i].Left = list[i].NotAfter.Sub(now)
	}
	p.Grants = list
	return p
}

// setGrants makes the grants of next the granted ones, in the kernel and on disk.
func (g *Gateway) setGrants(next policy.Policy) error {
	rs := ruleset.Build(g.timed(g.remaining(next)))
	if err := g.opt.Kernel.SetGrants(rs); err != nil {
		return err
	}
	g.policy = next
	return g.save()
}

// newGeneration begins somewhere, so that no flow of a life that was forgotten has the same mark.
func newGeneration() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return 1 + binary.BigEndian.Uint32(b[:])%(1<<23)
}

// remaining tells the run how long it still has.
func (g *Gateway) remaining(p policy.Policy) policy.Policy {
	if p.Phase == policy.Run {
		p.RunFor = max(g.runEnd.Sub(g.opt.Clock.Now()), time.Millisecond)
	}
	return p
}

func (g *Gateway) grantEnded(x policy.Grant, reason string) {
	g.granted()
	g.opt.Events.Emit("grant.ended", event.Fields{"grant": x.ID, "task": x.Task, "reason": reason})
}

func (g *Gateway) failed(err error) {
	g.opt.Events.Emit("gateway.failed", event.Fields{"reason": "kernel-refused", "detail": err.Error()})
}
