package tamper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"portcullis/lab"
	"portcullis/lab/qemu"
	"portcullis/lab/scenario"
)

// Options of Run.
type Options struct {
	Builder *lab.Builder
	Name    string // of the lab
	State   string // base of the state directories
	Attacks []Attack
	Rounds  int             // how often all of them are committed, each time in new boots
	Limit   time.Duration   // for the findings of one stage; 0 is two minutes
	Events  func(lab.Event) // sees all events; may be nil
	Say     func(string)    // what is being done; may be nil
	Report  func(Result)    // called after each attack; may be nil
}

const (
	// bootLimit bounds one boot to trusted.
	bootLimit = 12 * time.Minute
	// honestAnswers is how many answers of the PC are looked at before it is attacked.
	honestAnswers = 8
	// settled is when a PC counts as started, by its own clock: attestserver/expect has 180 s.
	settled = 185 * time.Second
	// deadline of the questions: the PC is emulated and beside other work.
	deadline = 20 * time.Second
	// stageLimit is how long the findings of a stage are waited for.
	stageLimit = 2 * time.Minute
	// unseenWait is how long what nothing finds is there.
	unseenWait = 30 * time.Second
)

// runner is one run.
type runner struct {
	Options
	l   *lab.Lab
	usb bool // of the attacks that are committed now
	// withUSB builds the image of the PC that knows USB.
	withUSB *lab.Builder
	image   *TaskImage
	round   int
	report  Report
	loaded  bool // the task image, in this boot
	booted  time.Time
}

// Run commits the attacks and waits for what must be found of each. The error is of
// the lab; what was not found stands in the report.
func Run(ctx context.Context, o Options) (r Report, err error) {
	w := &runner{Options: o, withUSB: &lab.Builder{Repository: o.Builder.Repository, Recipe: usbRecipe}}
	w.Rounds = max(w.Rounds, 1)
	if w.Limit == 0 {
		w.Limit = stageLimit
	}
	for w.round = 1; w.round <= w.Rounds; w.round++ {
		if err := w.oneRound(ctx); err != nil {
			return w.report, fmt.Errorf("round %d: %w", w.round, err)
		}
	}
	return w.report, nil
}

func (w *runner) say(format string, args ...any) {
	if w.Say != nil {
		w.Say(fmt.Sprintf(format, args...))
	}
}

// of returns the attacks of a stage on the PC of the image that is in use now.
func (w *runner) of(s Stage) (out []Attack) {
	for _, a := range w.Attacks {
		if a.Stage == s && a.USB == w.usb {
			out = append(out, a)
		}
	}
	return out
}

func (w *runner) oneRound(ctx context.Context) error {
	for _, w.usb = range []bool{false, true} {
		if len(w.of(Together))+len(w.of(Settled))+len(w.of(Alone))+len(w.of(Reboot))+len(w.of(Beside)) > 0 {
			if err := w.inLab(ctx); err != nil {
				return err
			}
		}
	}
	w.usb = false
	return w.played(ctx)
}

// inLab runs all stages of a PC that boots.
func (w *runner) inLab(ctx context.Context) (err error) {
	if err := w.makeImage(ctx); err != nil {
		return err
	}
	builder := w.Builder
	if w.usb {
		builder = w.withUSB
	}
	w.l, err = lab.Start(ctx, lab.Options{Name: w.Name, State: w.State, Builder: builder, Events: w.Events,
		Tune: func(s *lab.Settings) { s.Containers, s.Deadline = []string{w.image.Digest}, deadline }})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.l.Close()) }()
	w.l.Hardware = w.parts()
	if len(w.of(Together))+len(w.of(Settled))+len(w.of(Alone)) > 0 {
		if err := w.oneBoot(ctx); err != nil {
			return err
		}
	}
	for _, a := range w.of(Reboot) {
		if err := w.reboot(ctx, a); err != nil {
			return err
		}
	}
	for _, a := range w.of(Beside) {
		if err := w.beside(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// slots are where devices can be plugged in, beside the one that every PC of a lab has.
var slots = []string{"pcie-root-port,chassis=2,id=slot1", "pcie-root-port,chassis=3,id=slot2", "pcie-root-port,chassis=4,id=slot3"}

// usbParts are a USB controller and a keyboard, there from the beginning.
var usbParts = []string{"qemu-xhci,id=usb0", "usb-kbd,id=" + keyboard + ",bus=usb0.0,port=1"}

// usbRecipe makes the image whose kernel knows USB.
const usbRecipe = "lab/tamper/usb.yaml"

// parts is the hardware of the PC as it was enrolled.
func (w *runner) parts() qemu.Hardware {
	if w.usb {
		return qemu.Hardware{Other: slices.Concat(slots, usbParts)}
	}
	return qemu.Hardware{Other: slots}
}

func (w *runner) makeImage(ctx context.Context) error {
	if w.image != nil {
		return nil
	}
	built, err := w.Builder.Build(ctx, w.sayWhat)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(filepath.Join(built.Bin, "hpc-lab"))
	if err != nil {
		return err
	}
	w.image, err = NewTaskImage(taskName, program)
	return err
}

func (w *runner) sayWhat(what string) { w.say("building: %s", what) }

// boot powers the PC on and waits until it is trusted, or has been judged, and its systemd has
// started everything.
func (w *runner) boot(ctx context.Context) (mark int, err error) {
	w.say("round %d: the PC boots", w.round)
	mark = w.l.Log.Mark()
	w.loaded = false
	_, err = w.l.Boot(ctx, bootLimit)
	return mark, err
}

func (w *runner) running(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	r, err := w.l.ExecIn(ctx, nil, bootLimit, "/usr/bin/systemctl", "is-system-running", "--wait")
	if err != nil || r.Exit != 0 {
		return fmt.Errorf("the PC's systemd is %q %s: %w", r.Stdout, r.Error, err)
	}
	// Firmware has run before its clock did, and the clock of an emulated PC loses time.
	var up float64
	if r, err = w.l.ExecIn(ctx, nil, bootLimit, "/usr/bin/cat", "/proc/uptime"); err != nil {
		return err
	}
	if _, err := fmt.Sscan(string(r.Stdout), &up); err != nil {
		return fmt.Errorf("the PC's uptime is %q: %w", r.Stdout, err)
	}
	w.booted = time.Now().Add(-time.Duration(up * float64(time.Second)))
	return nil
}

// oneBoot looks at the honest PC and commits the stages of one boot.
func (w *runner) oneBoot(ctx context.Context) error {
	mark, err := w.boot(ctx)
	if err != nil {
		return err
	}
	if err := w.running(ctx); err != nil {
		return err
	}
	for at, n := w.l.Log.Mark(), 0; n < honestAnswers; n++ {
		if _, err := w.l.Log.Wait(ctx, at, lab.Is("evidence")); err != nil {
			return fmt.Errorf("answers of the honest PC: %w; %s", err, w.l.Why(mark))
		}
		at = w.l.Log.Mark()
	}
	before := judged(HonestResult{}, w.l.Log.Since(mark))
	w.report.Answers += before.Answers
	w.report.Alarms = append(w.report.Alarms, before.FalseAlarms...)
	if err := w.together(ctx, w.of(Together)); err != nil {
		return err
	}
	if later := w.of(Settled); len(later) > 0 {
		w.say("round %d: waiting until the PC counts as started", w.round)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(w.booted.Add(settled))):
		}
		if err := w.together(ctx, later); err != nil {
			return err
		}
	}
	for i, a := range w.of(Alone) {
		if err := w.together(ctx, []Attack{a}); err != nil {
			return err
		}
		if i == len(w.of(Alone))-1 {
			break // what cannot be taken back stands last
		}
		if _, err := w.l.Log.Wait(ctx, w.l.Log.Mark(), lab.Is("evidence")); err != nil {
			return fmt.Errorf("after %s was taken back: %w", a.Name, err)
		}
	}
	w.l.PowerCut()
	return nil
}

// pending is an attack that was committed.
type pending struct {
	attack Attack
	mark   int
	began  time.Time
}

// together commits attacks one after another without a pause, waits for the finding
// of each, and takes them back.
func (w *runner) together(ctx context.Context, attacks []Attack) error {
	var open []pending
	var done []Attack
	for _, a := range attacks {
		w.say("round %d: %s", w.round, a.Name)
		if a.Docker {
			if err := w.load(ctx); err != nil {
				return err
			}
		}
		began := time.Now()
		mark, refused, err := a.commit(ctx, w.l)
		if err == nil {
			done = append(done, a)
		}
		switch {
		case err != nil:
			w.tell(Result{Attack: a.Name, Outcome: Failed, Expected: a.expected(), Detail: err.Error()})
		case refused != "":
			w.tell(Result{Attack: a.Name, Outcome: Refused, Expected: a.expected(), Detail: refused})
		default:
			open = append(open, pending{a, mark, began})
		}
	}
	limit, cancel := context.WithTimeout(ctx, w.Limit)
	defer cancel()
	// What must be found comes first: what nothing finds has then been there all the time.
	slices.SortStableFunc(open, func(a, b pending) int { return len(a.attack.Unseen) - len(b.attack.Unseen) })
	for _, p := range open {
		w.await(limit, p)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, a := range slices.Backward(done) {
		if err := a.undo(ctx, w.l); err != nil {
			return err
		}
	}
	return nil
}

// await waits for what must be found of an attack.
func (w *runner) await(ctx context.Context, p pending) {
	if p.attack.Unseen != "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, p.began.Add(unseenWait))
		defer cancel()
	}
	e, err := w.l.Log.Wait(ctx, p.mark, p.attack.finds)
	r := Result{Attack: p.attack.Name, Outcome: NotFound, Expected: p.attack.expected(), Detail: p.attack.Unseen, Seconds: time.Since(p.began).Seconds()}
	if err == nil {
		r.Outcome, r.FoundBy, r.Reason, r.Detail, r.Seconds = Found, e.Text("probe"), e.Text("reason"), e.Text("detail"), e.Time.Sub(p.began).Seconds()
		if p.attack.FoundBy == "claim" {
			r.FoundBy, r.Reason = "claim", p.attack.Reasons[0]
		}
	}
	for _, c := range w.l.Log.Since(p.mark) {
		if c.Name == "challenge" {
			r.Challenges++
		}
		if p.attack.finds(c) {
			break
		}
	}
	w.tell(r)
}

func (w *runner) tell(r Result) {
	r.Round = w.round
	w.report.Results = append(w.report.Results, r)
	if w.Report != nil {
		w.Report(r)
	}
}

// load gives the PC the image of the lab's task, once a boot.
func (w *runner) load(ctx context.Context) error {
	if w.loaded {
		return nil
	}
	w.loaded = true
	r, err := w.l.ExecIn(ctx, w.image.Archive, commandLimit, "/usr/bin/docker", "load")
	if err != nil || r.Exit != 0 {
		return fmt.Errorf("docker load: %s%s: %w", r.Stderr, r.Error, err)
	}
	return nil
}

// reboot commits an attack while the PC is off: it has to be found after the next boot.
func (w *runner) reboot(ctx context.Context, a Attack) error {
	w.say("round %d: %s", w.round, a.Name)
	if w.l.Log.Mark(); w.report.Answers == 0 { // this run has not booted the machine as it is
		if _, err := w.boot(ctx); err != nil {
			return err
		}
		w.report.Answers++
	}
	w.l.PowerCut()
	if err := a.Host(ctx, w.l); err != nil {
		return err
	}
	defer func() { w.l.Hardware = w.parts() }()
	mark := w.l.Log.Mark()
	if err := w.l.PowerOn(ctx); err != nil {
		return err
	}
	defer w.l.PowerCut()
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	claimed, err := w.l.Log.Wait(ctx, mark, lab.Is("agent.claimed"))
	if err != nil {
		return fmt.Errorf("%s: no claim: %w; %s", a.Name, err, w.l.Why(mark))
	}
	w.await(ctx, pending{a, mark, claimed.Time})
	return nil
}

// played has scenes of lab/scenario play what has no running PC in it.
func (w *runner) played(ctx context.Context) error {
	attacks := w.of(Played)
	if len(attacks) == 0 {
		return nil
	}
	scenes := map[string][]Attack{}
	for _, a := range attacks {
		scenes[a.Scene] = append(scenes[a.Scene], a)
	}
	for _, p := range scenario.Plays() {
		results := p.Run(ctx, scenario.Options{Builder: w.Builder, Name: w.Name, State: w.State, Events: w.Events}, func(scene string) bool { return scenes[scene] != nil })
		for _, r := range results {
			for _, a := range scenes[r.Scene] {
				out := Result{Attack: a.Name, Outcome: NotFound, Expected: a.expected(), FoundBy: a.FoundBy, Detail: r.Detail, Challenges: 1}
				if r.OK {
					out.Outcome, out.Reason = Found, a.Reasons[0]
				}
				w.tell(out)
			}
		}
	}
	return ctx.Err()
}
