package server

import (
	"errors"
	"time"

	"portcullis/attestserver/continuity"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/schedule"
	"portcullis/internal/event"
)

// longestRekey is what the agent has to come with a new connection, and never
// more than the time between two.
const longestRekey = 15 * time.Second

// soonestRekey is how long keys are in use at least, where not the time but something
// that happens asks for new ones: what a PC can cause must not choose how often.
const soonestRekey = time.Minute

func (c *core) rekeyTime() time.Duration { return min(longestRekey, c.o.Rekey) }

// rekeySoon has the agent asked for a new connection as soon as that may be. What has
// just happened may be the moment at which somebody took the keys of this one.
func (c *core) rekeySoon(now time.Time) {
	soon := c.rekeyFrom
	if soon.Before(now) {
		soon = now
	}
	if soon.Before(c.rekeyAt) {
		c.rekeyAt = soon
	}
}

// follows settles whether a claim continues the epochs of its session, and gives
// it its epoch. One that does not is signed by the key of this boot and comes from
// somebody who has not followed it: that key is in two places.
func (c *core) follows(now time.Time, g *grant) bool {
	known := c.o.Epochs.Knows(g.session.Id)
	epoch, err := c.o.Epochs.Accept(g.session.Id, g.conn.Claim.Epoch, g.conn)
	switch {
	case err == nil:
		g.epoch = epoch
		return true
	case !errors.Is(err, continuity.ErrBroken):
		c.failure = err // what cannot be kept must not be granted
		g.conn.Close()
		return false
	}
	g.conn.Refuse(protocol.ClaimEpoch)
	c.refusal(g.conn.Remote, protocol.ClaimEpoch, err.Error())
	if known {
		c.failed(now, 0, []protocol.Finding{finding("channel", protocol.ClaimEpoch, protocol.Fatal, err.Error())})
	}
	return false
}

// attach makes g the link.
func (c *core) attach(now time.Time, g *grant) {
	c.link = newLink(c.Server, g, c.machine.Verdict().Evidence)
	c.rekeyBy, c.attached = time.Time{}, true
	c.ring() // losses of the carrier count from here on
	after, err := schedule.Jitter(c.o.Random, c.o.Rekey)
	if err != nil {
		c.failure = err
		return
	}
	c.rekeyAt, c.rekeyFrom = now.Add(after), now.Add(min(soonestRekey, c.o.Rekey/10))
}

// rekeyNext is when rekey has something to do.
func (c *core) rekeyNext() time.Time {
	if !c.rekeyBy.IsZero() {
		return c.rekeyBy
	}
	return c.rekeyAt
}

// rekey asks for a new connection when it is time, and counts one that does not come.
func (c *core) rekey(now time.Time) {
	c.takeOver(now)
	if c.link == nil || c.open != nil || c.judging || now.Before(c.rekeyNext()) {
		return
	}
	if !c.rekeyBy.IsZero() {
		c.rekeyBy, c.rekeyAt = time.Time{}, now.Add(c.rekeyTime())
		c.failed(now, c.link.sequence, []protocol.Finding{finding("channel", protocol.EvidenceRekey, protocol.Soft,
			"no new connection within "+c.rekeyTime().String())})
		return
	}
	c.rekeyBy = now.Add(c.rekeyTime())
	c.send(&protocol.Message{Body: &protocol.Message_Rekey{Rekey: new(protocol.Rekey)}})
}

// takeOver replaces the link by the one that has come, as soon as nothing is
// open on it: no challenge is lost between the two, and none is asked twice.
func (c *core) takeOver(now time.Time) {
	if c.coming == nil || c.open != nil || c.judging {
		return
	}
	g := c.coming
	c.coming = nil
	if c.link != nil {
		c.link.close()
	}
	c.attach(now, g)
	c.o.Events.Emit("rekey", event.Fields{"session": g.session.Id, "epoch": g.epoch.Number})
}

// confirm notes that the agent has the link's epoch.
func (c *core) confirm() {
	if c.link.settled {
		return
	}
	c.link.settled = true
	if err := c.o.Epochs.Confirm(c.link.epoch); err != nil {
		c.failure = err
	}
}
