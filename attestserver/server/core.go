package server

import (
	"context"
	"slices"
	"time"

	"golang.org/x/time/rate"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/challenge"
	"portcullis/attestserver/deadline"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/schedule"
	"portcullis/attestserver/verdict"
	"portcullis/internal/clock"
	"portcullis/internal/event"
)

// core is the state that one turn at a time owns: the verdict, the connection and
// the open challenge.
type core struct {
	*Server
	machine *verdict.Machine
	past    []string // sessions that others have followed; news of them is stale
	image   *openImage
	state   *protocol.ImageState
	chooser *challenge.Chooser
	enrol   []string // references to take next
	must    []string // to ask next, because of a notice
	hurried int      // challenges that a notice still makes follow one another

	link    *link
	open    *challenge.Sent // asked, not answered
	asked   time.Time
	judging bool      // an Expectation is at work: nothing is asked meanwhile
	beside  func()    // what follows this turn
	due     time.Time // of the next challenge
	pace    pace      // how long answers take

	losses   *uint64   // of the carrier by gatewayd's count, first heard after the session's claim
	attached bool      // the session has been claimed
	coming   *grant    // takes over when nothing is open on the link
	rekeyAt  time.Time // when the agent is asked for a new connection
	rekeyBy  time.Time // when it must have come; zero where none was asked for

	rekeyFrom time.Time // not before, whatever happens

	asks     []*asking // wait for the next challenge
	asking   []*asking // in the open one, or in the one that is being judged
	askAgain time.Time // not before: others must not choose how busy the PC is

	// A quarantined PC goes on being asked, and goes on failing: the count of
	// failures is in every record, each of them is not.
	quarantineLog *rate.Limiter

	rules rules
	notes notes

	recorded time.Time // when the newest entry of the log that renews the verdict was written
	entries  int64     // of the log, up to and with the PC's own newest one

	held    *openImage // as Images was told last
	pruneAt time.Time

	alarm clock.Timer // calls when something is due

	failure error // ends the core
}

// verdictLife is how long a good answer is worth something: 2 × the longest
// gap, and never less than the longest gap and one answer together.
func verdictLife(p schedule.Plan, deadline time.Duration) time.Duration {
	return max(2*p.Cap(), p.Cap()+deadline+time.Second)
}

// failureWindow in mean gaps: two soft failures within it quarantine.
const failureWindow = 60

func newCore(s *Server) *core {
	limits := verdict.Limits{Life: verdictLife(s.o.Plan, s.o.Deadline), Window: failureWindow / schedule.CapFactor * s.o.Plan.Cap()}
	return &core{Server: s, machine: verdict.New(limits), chooser: new(challenge.Chooser),
		quarantineLog: rate.NewLimiter(rate.Every(10*time.Second), 20)}
}

func (c *core) run(ctx context.Context) error {
	deep.do(c.enter)
	select {
	case <-ctx.Done():
	case <-c.broken:
	}
	c.turns.Lock()
	defer c.turns.Unlock()
	c.core = nil
	c.alarm.Stop()
	c.end()
	return c.failure
}

// enter has turns taken from now on.
func (c *core) enter() {
	c.turns.Lock()
	c.rules = newRules(c.Server)
	c.alarm = c.o.Clock.AfterFunc(0, func() { c.work(nil) })
	c.core = c
	c.turns.Unlock()
	close(c.ready)
}

// turn takes news, nil where it is only time, and does what follows and what is due. It
// returns what is to be done beside the core, nil where nothing is; false: the core has ended.
func (s *Server) turn(news func(*core)) (beside func(), there bool) {
	s.turns.Lock()
	defer s.turns.Unlock()
	c := s.core
	if c == nil || c.failure != nil {
		return nil, false
	}
	if news != nil {
		news(c)
	}
	now := c.o.Clock.Now()
	c.tick(now)
	c.judgePolicy(now)
	c.status.set(c.view())
	if c.failure != nil {
		close(s.broken)
	} else {
		c.alarm.Reset(c.wait(c.o.Clock.Now()))
	}
	beside, c.beside = c.beside, nil
	return beside, true
}

// post has f run in a turn, and returns when that is over. It returns false when the core
// has ended. No turn may call it.
func (s *Server) post(f func(*core)) (there bool) {
	if s.begun() {
		deep.do(func() { there = s.postHere(f) })
	}
	return there
}

// begun waits for the core; false: it has ended.
func (s *Server) begun() bool {
	select {
	case <-s.ready:
		return true
	case <-s.done:
		return false
	}
}

// postHere is post by who stands on a deep stack, for a core that has begun.
func (s *Server) postHere(f func(*core)) (there bool) {
	beside, there := s.turn(f)
	if beside != nil {
		deep.begin(beside)
	}
	return there
}

// work is post by who has time for what follows the turn as well, which spares waking
// somebody: judging takes long, and sending to a PC that reads nothing channel.WriteTime.
func (s *Server) work(f func(*core)) (there bool) {
	deep.do(func() { there = s.workHere(f) })
	return there
}

// workHere is work by who stands on a deep stack.
func (s *Server) workHere(f func(*core)) (there bool) {
	beside, there := s.turn(f)
	if beside != nil {
		beside()
	}
	return there
}

// later has f run beside the core, when this turn is over.
func (c *core) later(f func()) {
	if c.beside != nil {
		deep.begin(f)
		return
	}
	c.beside = f
}

// send has the agent of the link told; false: too much waits already.
func (c *core) send(m *protocol.Message) bool { return c.link.out.send(m, c.later) }

// wait is the time until something is due.
func (c *core) wait(now time.Time) time.Duration {
	d := c.rules.due.Sub(now)
	if c.rules.dirty {
		return 0
	}
	if at := c.machine.NotAfter(); !at.IsZero() {
		d = min(d, at.Sub(now))
	}
	switch {
	case c.open != nil:
		d = min(d, c.asked.Add(c.deadline()).Sub(now))
	case c.link != nil && !c.judging:
		d = min(d, c.next().Sub(now), c.rekeyNext().Sub(now))
	}
	return max(d, 0)
}

func (c *core) deadline() time.Duration {
	return time.Duration(c.open.Message.DeadlineMs) * time.Millisecond
}

func (c *core) tick(now time.Time) {
	if c.failure != nil {
		return
	}
	c.changed(now, 0, c.machine.Tick(now))
	if !c.judging {
		c.prune(now)
	}
	if c.open != nil && !now.Before(c.asked.Add(c.deadline())) {
		c.link.fates.set(c.open.ID(), expired)
		// The agent may still be at it: another question now would be late as well,
		// and one stall of an honest PC would count as two failures. It is asked
		// again when that answer comes, or after as long once more.
		c.link.busy = now.Add(c.deadline())
		c.fail(now, finding("", protocol.EvidenceLate, protocol.Soft, "no answer within "+c.deadline().String()))
	}
	c.rekey(now)
	if c.link != nil && c.open == nil && !c.judging && !now.Before(c.next()) {
		c.ask(now)
	}
}

// pruneEvery is how often old images are looked for.
const pruneEvery = time.Second

// prune tells which image is in use, and has those closed that are not.
func (c *core) prune(now time.Time) {
	if c.image == c.held && now.Before(c.pruneAt) {
		return
	}
	if c.o.Images.prune(c.Server, c.image, now) {
		c.held, c.pruneAt = c.image, now.Add(pruneEvery)
	}
}

// ask sends the next challenge.
func (c *core) ask(now time.Time) {
	moment := c.next()
	want := challenge.Want{
		State: c.state, Expectations: c.image.expectations, Enrol: c.enrol, Deadline: c.o.Deadline,
		Full: c.machine.Full() && len(c.enrol) == 0, Must: slices.Concat(c.machine.Failed(), c.must), Random: c.o.Random,
	}
	if c.state.CPUClass == "" && c.image.classified() && !pinned(c.o.Refs, c.state) {
		// Nothing of this image has been trusted yet: what takes references takes
		// them with the first question, which spares the PC a second one.
		want.Full, want.Enrol = true, enrollers(c.image)
	}
	if want.Full || len(want.Enrol) > 0 {
		want.Deadline *= FullFactor
	}
	if len(want.Enrol) > 0 {
		if !c.stands(now, want.Deadline) {
			return
		}
		c.changed(now, c.link.sequence+1, c.machine.Enrolling())
	} else {
		c.takeAsks(now, &want)
	}
	sent, err := c.chooser.Compose(want, c.link.peer, c.link.sequence+1, c.link.head)
	if err != nil {
		// Our own fault: nothing was asked, so the verdict runs out.
		c.leave()
		c.o.Events.Emit("challenge.failed", event.Fields{"session": c.machine.Session(), "detail": err.Error()})
		c.due = now.Add(c.o.Plan.Cap())
		return
	}
	c.link.sequence++
	c.open, c.asked, c.must = sent, now, nil
	names := make([]string, len(sent.Ops))
	for i, op := range sent.Ops {
		names[i] = op.Name()
	}
	c.o.Events.Emit("challenge", event.Fields{"session": c.machine.Session(), "sequence": sent.Message.Sequence,
		"probes": names, "enrol": sent.Enrol, "late_seconds": c.o.Clock.Now().Sub(moment).Seconds()})
	c.send(&protocol.Message{Body: &protocol.Message_Challenge{Challenge: sent.Message}})
}

// plan sets when the next challenge is due.
func (c *core) plan(now time.Time) {
	gap, err := c.o.Plan.Gap(c.o.Random)
	switch {
	case len(c.enrol) > 0, c.machine.Full() && !c.machine.Burst() && c.machine.State() != verdict.Quarantined:
		gap = 0
	case c.machine.Burst(), c.hurried > 0:
		c.hurried = max(c.hurried-1, 0)
		gap, err = schedule.Burst(c.o.Random)
	}
	if err != nil {
		c.failure = err // no randomness: better no verdicts than predictable ones
		return
	}
	c.due = now.Add(gap)
}

// claimed takes over a connection whose claim was granted.
func (c *core) claimed(g *grant) {
	now := c.o.Clock.Now()
	if g.session.Id != c.machine.Session() {
		if slices.Contains(c.past, g.session.Id) {
			g.conn.Refuse(protocol.ClaimSession)
			return
		}
		c.begin(now, g.session, verdict.ReasonSession)
	}
	if !c.follows(now, g) {
		return
	}
	switch {
	case c.link != nil && !c.rekeyBy.IsZero():
		c.coming = g
		c.takeOver(now)
		return
	case c.link != nil:
		c.lost(now, c.link, "the agent connected anew")
	}
	if c.image != g.image || c.state == nil {
		c.image = g.image
		c.state = &protocol.ImageState{Image: g.image.Image, Session: g.session.Id, MAC: g.session.Mac,
			Address: g.session.Address, Notes: make(map[string][]byte)}
	}
	c.attach(now, g)
	c.rules.dirty = true
	c.o.Events.Emit("agent.claimed", event.Fields{"session": g.session.Id, "resumed": g.resumed, "epoch": g.epoch.Number,
		"image": g.image.Manifest.Image, "version": g.image.Manifest.Version})
	c.due = now
}

// watched takes news of a boot session from pxed.
func (c *core) watched(s *portcullisv1.Session) {
	now := c.o.Clock.Now()
	if s.Id != c.machine.Session() {
		if slices.Contains(c.past, s.Id) {
			return
		}
		c.begin(now, s, verdict.ReasonSession)
	}
	switch s.State {
	case portcullisv1.SessionState_SESSION_STATE_VOID:
		c.changed(now, 0, c.machine.Quarantine(verdict.ReasonVoid))
	case portcullisv1.SessionState_SESSION_STATE_ENDED:
		if c.machine.State() != verdict.Unknown {
			c.begin(now, s, verdict.ReasonEnded)
		}
		c.disconnect()
	}
}

// maxPast is how many sessions that are over are remembered. News of them can
// only be on its way for moments. Times are not compared: the clock of a Pi
// without a battery jumps.
const maxPast = 64

// begin forgets the session before.
func (c *core) begin(now time.Time, s *portcullisv1.Session, reason string) {
	c.end()
	if old := c.machine.Session(); old != "" && old != s.Id {
		c.past = append(c.past[max(0, len(c.past)-maxPast+1):], old)
	}
	c.state, c.enrol = nil, nil
	c.losses, c.attached = nil, false
	c.enforce.forget()
	c.rules.begin(now)
	c.chooser = new(challenge.Chooser)
	c.pace.watch = deadline.Watch{Window: c.machine.Window()}
	go c.prepare(now) // the PC is booting meanwhile
	failed, fatal := c.o.Record.hasFailed(c.o.Name, s.Id)
	c.changed(now, 0, c.machine.NewSession(s.Id, reason))
	if failed {
		c.machine.Doubt(fatal)
	}
	if c.o.Record.wasQuarantined(c.o.Name, s.Id) {
		c.changed(now, 0, c.machine.Quarantine(verdict.ReasonRestored))
	}
}

// end is disconnect, also of a connection that was to take over.
func (c *core) end() {
	if c.coming != nil {
		c.coming.conn.Close()
		c.coming = nil
	}
	c.disconnect()
}

func (c *core) disconnect() {
	if !c.judging { // an answer that is still judged is held, and has its turn until then
		c.leave()
	}
	if c.link != nil {
		c.link.close()
	}
	c.link, c.open, c.must, c.hurried = nil, nil, nil, 0
	c.rules.dirty = true
	c.dropAsks(ReasonAskGone, "the PC's connection has ended")
}

// lost ends the current connection. A challenge that is open on it has failed:
// who cannot answer must not get another question by hanging up. The end of a
// believed PC's connection has failed as well: who hangs up after each answer
// would choose by coming back when it is asked next.
func (c *core) lost(now time.Time, l *link, why string) {
	if l != c.link {
		return
	}
	if s := c.machine.State(); c.open != nil || s == verdict.Trusted || s == verdict.Suspect {
		c.fail(now, finding("", protocol.EvidenceMissing, protocol.Soft, why))
	}
	c.part(why)
}

// part ends the current connection and counts nothing.
func (c *core) part(why string) {
	c.o.Events.Emit("agent.disconnected", event.Fields{"session": c.machine.Session(), "detail": why})
	c.disconnect()
}
