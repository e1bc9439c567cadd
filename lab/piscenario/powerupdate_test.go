package piscenario

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/lab/channel"
	"portcullis/lab/medium"
	"portcullis/lab/pi"
)

// powerUpdate is what the cuts of an update share.
type powerUpdate struct {
	before asleep  // release 1 runs, the update is there
	dir    string  // outlives the cuts
	staged pi.Card // release 2 is written and will be started on trial
	gate   *asleep // the services of release 2 are up, it is not committed yet; made when it is needed
	// What the update's dry run has shown: it takes span and writes so often.
	span                time.Duration
	configuration, boot int
}

// updateToCut makes a Pi that is about to update, and lets it do so once.
func updateToCut(t *testing.T) *powerUpdate {
	t.Helper()
	u := &powerUpdate{before: runningPi(t), dir: bigDir(t)}
	dry := u.before.resume(t)
	conf, boot := part(t, dry.card, card.PartConf), part(t, dry.card, card.PartBootB)
	dry.disk.Count(conf)
	dry.disk.Count(boot)
	began := time.Now()
	if r := portcullis(t, dry.Machine, "update", newOnStick, "--no-reboot"); r.Exit != 0 {
		t.Fatalf("update: %s %s", r.Stderr, r.Error)
	}
	u.span, u.configuration, u.boot, u.staged = time.Since(began), dry.disk.Writes(conf), dry.disk.Writes(boot), dry.card
	t.Logf("an update takes %.1f s and writes %d times to the configuration, %d times to the boot partition", u.span.Seconds(), u.configuration, u.boot)
	output(t, dry.Machine, "sync")
	dry.Kill()
	if err := dry.disk.Close(); err != nil {
		t.Fatal(err)
	}
	return u
}

// TestPowerCutUpdate: whenever the power fails while an update is written, on
// trial or being committed, the next boot runs a complete release, opened by the
// chip; the operator's key opens the volume; and the update can be finished.
func TestPowerCutUpdate(t *testing.T) {
	t.Parallel()
	u := updateToCut(t)
	operator := operatorKey(t)
	cuts(t, func(t *testing.T, r *rand.Rand, i int) outcome {
		cut := u.cutWriting
		if i%2 == 1 {
			cut = u.cutTrial
		}
		o, c := cut(t, r)
		s, err := confOf(t, c).State()
		if err != nil {
			t.Fatal(err)
		}
		o.after = proveRelease(t, recovers(t, c, "tpm2", switchRoot), s)
		keyIsSafe(t, c, operator)
		if i%16 == 1 {
			finishes(t, c)
		}
		return o
	})
}

// cutWriting cuts while the new release is written and put on trial.
func (u *powerUpdate) cutWriting(t *testing.T, r *rand.Rand) (outcome, pi.Card) {
	t.Helper()
	p := u.before.resume(t)
	at := moment{after: time.Duration(r.Int64N(int64(u.span)))}
	var where medium.Region
	switch r.IntN(4) {
	case 0:
		at, where = moment{region: "configuration", writes: r.IntN(u.configuration + 1)}, part(t, p.card, card.PartConf)
	case 1:
		at, where = moment{region: "boot partition", writes: r.IntN(u.boot + 1)}, part(t, p.card, card.PartBootB)
	}
	t.Logf("moment: %s", at)
	if at.region != "" {
		p.disk.CutAfter(at.writes, where)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	ended := make(chan channel.Response, 1)
	go func() {
		resp, _ := p.Exec(ctx, "portcullis", "update", newOnStick, "--no-reboot") // ends with the power
		ended <- resp
	}()
	class := "while an update is written"
	if at.region != "" {
		select {
		case <-p.disk.Fired():
		case <-ended:
			class = "after an update was written"
		}
	} else {
		select {
		case <-time.After(at.after):
		case <-ended:
			class = "after an update was written"
		}
	}
	o := outcome{moment: at.String(), class: class, loss: p.cut(t, r)}
	cancel()
	return o, p.card
}

// stagesOfTrial are the lines after which the boot of a trial is cut.
var stagesOfTrial = []string{
	`stage=init `, `stage=card [^\n]*release=2 `, `stage=chip `, `stage=unlock `, `stage=slot [^\n]*slot=b`, `stage=cap `, `stage=data `, `stage=switch-root `,
}

// What a trial says at its end: its services are up; it is the active release, and
// the chip's counter is about to be raised.
const (
	servicesUp = `identity gateway=`
	committed  = `release 2 in slot b works`
)

// cutTrial cuts a release on trial: while it starts, or while it is committed.
func (u *powerUpdate) cutTrial(t *testing.T, r *rand.Rand) (outcome, pi.Card) {
	t.Helper()
	var at moment
	var p *powered
	start := r.IntN(3) > 0
	if start {
		p = power(t, cardOf(t, u.staged))
	} else {
		p = u.atGate(t).resume(t)
	}
	where := part(t, p.card, card.PartConf)
	class := "while a trial is committed"
	switch how := r.IntN(3); {
	case start && how == 0:
		at, class = moment{region: "configuration", writes: r.IntN(2)}, "while a trial starts"
		at.line = `stage=init `
	case start:
		at, class = soon(r, stagesOfTrial[r.IntN(len(stagesOfTrial))]), "while a trial starts"
	case how == 0:
		at = moment{region: "configuration", writes: 1}
	case how == 1:
		at = soon(r, committed)
	default:
		at = moment{after: time.Duration(r.Int64N(int64(25 * time.Second)))}
	}
	at.wait(t, p, where, committed)
	return outcome{moment: at.String(), class: class, loss: p.cut(t, r)}, p.card
}

// atGate is the release on trial with its services up.
func (u *powerUpdate) atGate(t *testing.T) asleep {
	t.Helper()
	if u.gate == nil {
		c := shared(t, u.staged, u.dir)
		m := boot(t, c, withOneCPU)
		expect(t, m, servicesUp)
		a := suspend(t, m, c)
		u.gate = &a
	}
	return *u.gate
}

var slotLine = regexp.MustCompile(`portcullis: stage=slot [^\n]*slot=([ab]) trial=(yes|no)`)

// proveRelease checks that what the console shows to run is what the card said.
func proveRelease(t *testing.T, console string, s card.State) string {
	t.Helper()
	got := slotLine.FindStringSubmatch(console)
	if got == nil {
		t.Fatalf("no slot on the console:\n%s", console)
	}
	slot, trial := card.Slot(got[1]), got[2] == "yes"
	ok := !trial && s.Active.Slot == slot || trial && s.Trial != nil && s.Trial.Slot == slot
	if !ok || s.Active.Sequence != map[card.Slot]uint64{card.SlotA: 1, card.SlotB: 2}[s.Active.Slot] {
		t.Fatalf("slot %s runs, trial %t; the card said %s", slot, trial, s)
	}
	if trial {
		return "release 2 runs, on trial"
	}
	return fmt.Sprintf("release %d runs", s.Active.Sequence)
}

// finishes boots until the release on trial is committed: what was cut costs an
// attempt, nothing more.
func finishes(t *testing.T, c pi.Card) {
	t.Helper()
	s, err := confOf(t, c).State()
	if err != nil {
		t.Fatal(err)
	}
	if s.Active.Sequence == 2 {
		return
	}
	m := boot(t, c, withOneCPU)
	if s.Trial != nil && s.Trial.Attempts < card.MaxAttempts {
		expect(t, m, committed)
	} else {
		expect(t, m, `stage=slot [^\n]*slot=a trial=no`)
	}
	m.Kill()
}
