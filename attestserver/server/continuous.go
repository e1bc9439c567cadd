package server

import "portcullis/attestserver/verdict"

// continuous ends belief in a session whose cable lost its carrier after the
// claim: what is at its other end now may be another machine, with all that this
// one knew. The PC has to boot again. Losses before the claim are the PC's own:
// network drivers take the carrier down when they start.
func (c *core) continuous(w wire) {
	switch {
	case !w.known || !c.attached:
		return
	case c.losses == nil || w.losses < *c.losses: // or gatewayd has begun to count anew
		c.losses = &w.losses
		return
	case w.losses == *c.losses || c.machine.State() == verdict.Quarantined:
		return
	}
	c.o.Epochs.Forget()
	c.changed(c.o.Clock.Now(), 0, c.machine.Quarantine(verdict.ReasonLink))
}
