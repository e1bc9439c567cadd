package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"portcullis/gateway/link"
	"portcullis/gateway/nft"
	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/gateway/violation"
	"portcullis/internal/event"
)

var errStopped = errors.New("server: gatewayd is stopping")

// openBoot: the answer means that the kernel enforces the boot phase.
func (g *Gateway) openBoot(session, mac, address string) error {
	next, err := g.policy.OpenBoot(session, mac, address)
	if err != nil {
		return err
	}
	if next.Session == g.policy.Session {
		return g.saveAgain()
	}
	return g.move(next, "boot-request")
}

func (g *Gateway) setPhase(session string, to policy.Phase, ttl time.Duration, reason string) error {
	next, err := g.policy.SetPhase(session, to, ttl)
	if err != nil {
		return err
	}
	if to == g.policy.Phase {
		if to != policy.Run {
			return g.saveAgain()
		}
		if g.past != session {
			// The run was begun and never answered, since the disk failed. Without a file that knows it, a
			// quarantine that follows would be forgotten with the power: a session that boots is trusted by nobody.
			if err := g.save(); err != nil {
				return err
			}
		}
		end := g.opt.Clock.Now().Add(ttl)
		if err := g.opt.Kernel.SetRun(ruleset.Build(g.timed(next))); err != nil {
			return err
		}
		g.policy, g.runEnd = next, end
		return g.opt.Wire.Route(true) // an interface may have come since
	}
	return g.move(next, reason)
}

func (g *Gateway) saveAgain() error {
	if !g.dirty {
		return nil
	}
	return g.save()
}

func (g *Gateway) addGrant(task string, t policy.Target, d time.Duration) (policy.Grant, error) {
	next, x, err := g.policy.AddGrant(task, t, d, g.opt.Clock.Now())
	if err != nil {
		return policy.Grant{}, err
	}
	before := g.policy
	if err := g.setGrants(next); err != nil {
		// Not on disk is not granted: take it back out of the kernel.
		return policy.Grant{}, errors.Join(err, g.setGrants(before))
	}
	g.granted()
	g.opt.Events.Emit("grant.added", event.Fields{"grant": x.ID, "task": x.Task, "target": t.String(), "seconds": d.Seconds()})
	return x, nil
}

func (g *Gateway) revokeGrant(id string) (bool, error) {
	next, x, ok := g.policy.RemoveGrant(id)
	if !ok {
		return false, nil
	}
	if err := g.setGrants(next); err != nil {
		return true, err
	}
	g.grantEnded(x, "revoked")
	return true, nil
}

// Violation takes one piece of evidence: it is remembered and told. The packet
// that brings a ban is told as the ban.
func (g *Gateway) Violation(v violation.Violation) {
	g.tellOf()
	if v.Reason == ruleset.BanReason {
		g.opt.Events.Emit("ban", event.Fields{"mac": g.opt.Port.MAC.String(), "seconds": g.opt.Port.BanFor.Seconds()})
		return
	}
	g.ring.Add(v)
	g.opt.Events.Emit("violation", event.Fields{"direction": v.Direction, "protocol": v.Protocol, "source": v.Source,
		"destination": v.Destination, "port": int(v.Port), "reason": v.Reason})
}

// Waits until what could not be put back is tried again; each is twice the one before.
const (
	restoreFirst = 100 * time.Millisecond
	restoreLast  = 5 * time.Second
)

// portsTold bounds how many ports an event names: the set of them has room for thousands.
const portsTold = 16

// Changed is called for each new generation of the machine's rulesets: when ours
// is not what it was, it is put back and the editor named.
func (g *Gateway) Changed(ctx context.Context, e nft.Editor) error {
	var failed error
	err := g.ask(ctx, func() { failed = g.restore(e) })
	return errors.Join(err, failed)
}

// restore puts back what somebody changed. Where that fails Run tries again, since there may be no
// other change by which it would be noticed.
func (g *Gateway) restore(e nft.Editor) error {
	found, err := g.opt.Kernel.Restore()
	for _, d := range found {
		fields := event.Fields{"reason": string(d.Reason), "pid": int(e.PID), "comm": e.Comm, "restored": err == nil}
		if len(d.Ports) > 0 {
			fields["count"], fields["ports"] = len(d.Ports), d.Ports[:min(len(d.Ports), portsTold)]
		}
		g.opt.Events.Emit("drift", fields)
	}
	if slices.ContainsFunc(found, func(d nft.Drift) bool { return d.Reason == nft.TablesChanged }) {
		// The elements' time went on meanwhile: what is left now is what counts.
		err = errors.Join(err, g.enforce(g.remaining(g.policy)))
	}
	if err == nil {
		g.restoreAt, g.restoreWait = time.Time{}, 0
		return nil
	}
	g.editor = e
	g.restoreWait = min(max(2*g.restoreWait, restoreFirst), restoreLast)
	g.restoreAt = g.opt.Clock.Now().Add(g.restoreWait)
	return err
}

// restoreAgain is restore's next try, when its time has come.
func (g *Gateway) restoreAgain() {
	if g.restoreAt.IsZero() || g.opt.Clock.Now().Before(g.restoreAt) {
		return
	}
	if err := g.restore(g.editor); err != nil {
		g.failed(err)
	}
}

// Link takes a change of the port. A port that was made anew gets its table
// again; without a carrier nobody can say that the same machine is behind the
// cable, so a run ends and has to be shown again.
func (g *Gateway) Link(ctx context.Context, s link.State) error {
	var failed error
	err := g.ask(ctx, func() {
		if s.Index != 0 && s.Index != g.index {
			failed = errors.Join(link.Harden(g.opt.Port.Interface), g.enforce(g.remaining(g.policy)))
		}
		g.index = s.Index
		if g.link && !s.Carrier {
			g.losses++
		}
		if g.link != s.Carrier {
			g.bell.ring()
		}
		g.link = s.Carrier
		g.opt.Events.Emit("link", event.Fields{"present": s.Index != 0, "carrier": s.Carrier, "bound": s.Index != 0 && g.opt.Kernel.LinkBound() == nil})
		if s.Master != 0 {
			g.opt.Events.Emit("drift", event.Fields{"reason": "port-enslaved", "restored": true})
			failed = errors.Join(failed, link.Release(g.opt.Port.Interface))
		}
		if !s.Carrier && g.policy.Phase == policy.Run {
			failed = errors.Join(failed, g.move(g.policy.Fallback(), "link-lost"))
		}
	})
	return errors.Join(err, failed)
}
