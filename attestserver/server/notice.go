package server

import (
	"slices"
	"time"

	"golang.org/x/time/rate"

	"portcullis/attestserver/protocol"
	"portcullis/attestserver/schedule"
	"portcullis/internal/event"
)

// How many notices a connection may send: an honest agent sends one a second at
// most, and a clock that runs a little faster than ours is no attack.
const (
	noticeRate  = rate.Limit(2)
	noticeBurst = 8
)

// noticed takes an agent's notice: a burst follows that asks the probe that has
// seen something. A notice cannot delay a challenge, only bring it forward, and
// who sends too many of them is no agent of ours.
func (c *core) noticed(now time.Time, n *protocol.Notice) {
	if !c.link.notices.AllowN(now, 1) {
		c.unasked(now, finding("", protocol.EvidenceMalformed, protocol.Fatal, "more notices than an agent sends"))
		return
	}
	known := slices.ContainsFunc(c.image.expectations, func(e protocol.Expectation) bool { return e.Name() == n.GetProbe() })
	if !known {
		return // of a newer image than this gateway
	}
	c.o.Events.Emit("agent.notice", event.Fields{"session": c.machine.Session(), "probe": n.GetProbe()})
	if !slices.Contains(c.must, n.GetProbe()) {
		c.must = append(c.must, n.GetProbe())
	}
	c.hurry(now)
}

// hurry begins a burst: BurstSize challenges follow what has just happened, the
// first within a burst's gap, and new keys as soon as may be.
func (c *core) hurry(now time.Time) {
	c.rekeySoon(now)
	gap, err := schedule.Burst(c.o.Random)
	if err != nil {
		c.failure = err
		return
	}
	c.hurried = schedule.BurstSize
	if c.open == nil && !c.judging {
		c.hurried-- // the one that is due now; plan makes the others follow
	}
	if at := now.Add(gap); at.Before(c.due) {
		c.due = at
	}
}
