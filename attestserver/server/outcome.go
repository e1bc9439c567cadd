package server

import (
	"encoding/hex"
	"errors"
	"strings"
	"time"
	"unicode"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/challenge"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
	"portcullis/internal/event"
)

// finding makes one that is the gateway's own; probe "" stands for the answer as a whole.
func finding(probe, reason string, class protocol.Class, detail string) protocol.Finding {
	if probe == "" {
		probe = "evidence"
	}
	return bounded(protocol.Finding{Probe: probe, Reason: reason, Class: class, Detail: detail})
}

// refusal is the finding for an answer that challenge refused.
func refusal(err error) protocol.Finding {
	var refused *challenge.Error
	if !errors.As(err, &refused) {
		return finding("", protocol.EvidenceMalformed, protocol.Fatal, err.Error())
	}
	return finding("", refused.Reason, protocol.Fatal, refused.Detail)
}

// bounded makes a finding fit for logs: its detail may quote a hostile machine.
func bounded(f protocol.Finding) protocol.Finding {
	f.Detail = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(f.Detail, "?"))
	if len(f.Detail) > protocol.MaxReasonBytes {
		f.Detail = strings.ToValidUTF8(f.Detail[:protocol.MaxReasonBytes], "")
	}
	return f
}

func failing(findings []protocol.Finding) bool {
	for _, f := range findings {
		if f.Class != protocol.Info {
			return true
		}
	}
	return false
}

// settle is for an answer that is refused: the open challenge, if there is one,
// has had its answer.
func (c *core) settle(now time.Time, f protocol.Finding) {
	if c.open != nil {
		c.link.fates.set(c.open.ID(), answered)
	}
	c.fail(now, f)
}

// unasked is for what no honest agent sends: it fails like a refused answer,
// and ends the connection, so that it costs the sender a new one each time.
func (c *core) unasked(now time.Time, f protocol.Finding) {
	c.settle(now, f)
	c.part(f.Reason)
}

// fail counts one failure of the open challenge or of the connection.
func (c *core) fail(now time.Time, f protocol.Finding) {
	sent := c.open
	c.open = nil
	if sent != nil && sent.Enrol {
		c.leave()
	}
	c.failed(now, c.link.sequence, []protocol.Finding{f})
	if sent != nil {
		c.answerAsks(now, sent)
	}
}

func (c *core) failed(now time.Time, sequence uint64, findings []protocol.Finding) {
	c.report(sequence, findings)
	change := c.machine.Fail(now, sequence, findings)
	if change == nil && c.quarantineLog.AllowN(now, 1) {
		c.write(now, sequence, findings)
	}
	c.changedWith(now, sequence, change, findings)
	c.plan(now)
}

// doubtful makes a suspect of a PC whose answers are right and slow. It counts as
// no failure.
func (c *core) doubtful(now time.Time, sequence uint64, findings []protocol.Finding, head [32]byte) {
	c.report(sequence, findings)
	c.changedWith(now, sequence, c.machine.Doubtful(now, sequence, findings, head), findings)
	c.plan(now)
}

// note records findings that fail nothing.
func (c *core) note(now time.Time, sequence uint64, findings ...protocol.Finding) {
	if len(findings) == 0 {
		return
	}
	c.tell(now, sequence, findings)
	c.write(now, sequence, findings)
}

// tell reports findings that fail nothing and leaves the log as it is.
func (c *core) tell(now time.Time, sequence uint64, findings []protocol.Finding) {
	if len(findings) == 0 {
		return
	}
	c.report(sequence, findings)
	c.machine.Note(now, sequence, findings)
}

func (c *core) report(sequence uint64, findings []protocol.Finding) {
	c.rules.dirty = true
	for _, f := range findings {
		c.o.Events.Emit("finding", event.Fields{"session": c.machine.Session(), "sequence": sequence, "probe": f.Probe,
			"reason": f.Reason, "detail": f.Detail, "class": f.Class.String()})
	}
}

// changed carries out what a change of the verdict means.
func (c *core) changed(now time.Time, sequence uint64, change *verdict.Change) {
	c.changedWith(now, sequence, change, nil)
}

func (c *core) changedWith(now time.Time, sequence uint64, change *verdict.Change, findings []protocol.Finding) {
	if change == nil {
		return
	}
	if change.From != change.To {
		c.rules.stateSince = now
	}
	c.rules.dirty = true
	renewal := change.From == verdict.Trusted && change.To == verdict.Trusted && change.Reason != verdict.ReasonTier
	// What ends trust is shown, and quarantine enforced, before it is written down;
	// trust when it is on the disk: what could not be recorded must not open anything.
	if change.To != verdict.Trusted {
		c.status.set(c.view())
	}
	if change.To == verdict.Quarantined {
		c.enforcePhase(change)
	}
	if !renewal || now.Sub(c.recorded) >= renewEvery {
		c.recorded = now
		c.record(now, sequence, findings, change.From != change.To)
	}
	if c.failure != nil {
		return
	}
	if change.To != verdict.Quarantined {
		c.enforcePhase(change)
	}
	if !renewal {
		v := c.machine.Verdict()
		c.o.Events.Emit("verdict", event.Fields{"session": v.Session, "state": v.State.String(), "from": change.From.String(),
			"reason": change.Reason, "tier": string(v.Tier), "posture": c.o.Posture, "warnings": c.o.warnings(v.Warnings)})
	}
	c.status.set(c.view())
}

func (c *core) enforcePhase(change *verdict.Change) {
	v := c.machine.Verdict()
	switch {
	case v.Session == "":
	case change.To == verdict.Trusted:
		c.enforce.want(phaseWish{v.Session, portcullisv1.Phase_PHASE_RUN, c.o.Clock.Now(), v.NotAfter, change.Reason})
	case change.To == verdict.Quarantined:
		c.enforce.want(phaseWish{session: v.Session, phase: portcullisv1.Phase_PHASE_QUARANTINE, made: c.o.Clock.Now(), reason: change.Reason})
	}
}

// write records what is believed now and what was found. The kernel has it then.
func (c *core) write(now time.Time, sequence uint64, findings []protocol.Finding) {
	c.record(now, sequence, findings, false)
}

func (c *core) record(now time.Time, sequence uint64, findings []protocol.Finding, durable bool) {
	v := c.machine.Verdict()
	e := entry{
		Time: now.UTC().Format("2006-01-02T15:04:05.000Z"), PC: c.o.Name, Session: v.Session, Sequence: sequence,
		State: v.State.String(), Reason: v.Reason, Challenges: v.Challenges, Failures: v.Failures,
		Evidence: hex.EncodeToString(v.Evidence[:]), Tier: string(v.Tier), Posture: c.o.Posture,
	}
	for _, a := range c.asking {
		e.Asked = append(e.Asked, entryAsked{hex.EncodeToString(a.nonce), a.context})
	}
	for _, f := range findings {
		e.Findings = append(e.Findings, entryFinding{f.Probe, f.Reason, f.Detail, f.Class.String()})
	}
	index, err := c.o.Record.write(e, durable)
	if err != nil {
		c.failure = err
		return
	}
	c.entries = index + 1
}
