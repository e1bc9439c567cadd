package tamper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/lab"
)

// Honest says how an honest PC is kept busy and for how long.
type Honest struct {
	Builder *lab.Builder
	Name    string // of the lab
	State   string // base of the state directories
	For     time.Duration
	Events  func(lab.Event)    // sees all events; may be nil
	Report  func(HonestResult) // called after each round; may be nil
}

// HonestResult counts what an honest busy PC was told.
type HonestResult struct {
	Seconds     float64        `json:"seconds"` // of work, after the boot
	Rounds      int            `json:"rounds"`
	Containers  int            `json:"containers"`   // that were run
	Logins      int            `json:"logins"`       // commands over the lab's channel
	Challenges  int            `json:"challenges"`   // asked in that time
	Answers     int            `json:"answers"`      // of them accepted
	Notes       map[string]int `json:"notes"`        // findings of class info, by reason
	FalseAlarms []Alarm        `json:"false_alarms"` // findings of any other class; must be none
	Distrusted  int            `json:"distrusted"`   // verdicts other than trusted; must be 0
}

// Alarm is a finding on a PC that nobody attacks.
type Alarm struct {
	Probe  string `json:"probe"`
	Reason string `json:"reason"`
	Class  string `json:"class"`
	Detail string `json:"detail"`
}

// OK tells whether the PC was trusted all the time and answered.
func (r HonestResult) OK() bool {
	return len(r.FalseAlarms) == 0 && r.Distrusted == 0 && r.Answers > 0
}

// Settings for a PC without hardware help: the product's own gaps between questions,
// and a deadline for a machine that is ten times slower and beside other work.
const (
	honestGap      = 5 * time.Second
	honestDeadline = 2 * time.Minute
	taskName       = "lab/task:1"
	honestRekey    = 10 * time.Minute
	// commandLimit bounds one command: under emulation Docker takes seconds for each.
	commandLimit = 15 * time.Minute
)

// Run boots a PC and has it work. The error is of the lab or of the work, not of
// what was found.
func (h Honest) Run(ctx context.Context) (r HonestResult, err error) {
	built, err := h.Builder.Build(ctx, func(string) {})
	if err != nil {
		return r, err
	}
	program, err := os.ReadFile(filepath.Join(built.Bin, "hpc-lab"))
	if err != nil {
		return r, err
	}
	image, err := NewTaskImage(taskName, program)
	if err != nil {
		return r, err
	}
	l, err := lab.Start(ctx, lab.Options{Name: h.Name, State: h.State, Builder: h.Builder, Events: h.Events, Tune: func(s *lab.Settings) {
		s.Containers, s.MeanGap, s.Deadline, s.Rekey = []string{image.Digest}, honestGap, honestDeadline, honestRekey
	}})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	mark := l.Log.Mark()
	if _, err := l.Boot(ctx, bootLimit); err != nil {
		return r, err
	}
	w := worker{l: l, image: image}
	began := time.Now()
	if err := w.run(ctx, "/usr/bin/systemctl", "is-system-running", "--wait"); err != nil {
		return r, err
	}
	for time.Since(began) < h.For {
		if err := w.round(ctx); err != nil {
			return r, err
		}
		w.count.Seconds = time.Since(began).Seconds()
		r = judged(w.count, l.Log.Since(mark))
		if h.Report != nil {
			h.Report(r)
		}
	}
	return r, nil
}

// worker uses a PC as its owner would.
type worker struct {
	l      *lab.Lab
	image  *TaskImage
	loaded bool
	count  HonestResult
}

func (w *worker) run(ctx context.Context, argv ...string) error { return w.runIn(ctx, nil, argv...) }

func (w *worker) runIn(ctx context.Context, stdin []byte, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit+10*time.Second)
	defer cancel()
	r, err := w.l.ExecIn(ctx, stdin, commandLimit, argv...)
	w.count.Logins++
	if err != nil {
		return err
	}
	if r.Exit != 0 || r.Error != "" {
		return fmt.Errorf("%v ended with %d %s: %s%s", argv, r.Exit, r.Error, r.Stdout, r.Stderr)
	}
	return nil
}

// honestLoad is work outside of containers: both processors, memory and disks, with the
// image's own programs only.
const honestLoad = `/usr/lib/portcullis/hpc-lab work 20s /tmp >/dev/null 2>&1 </dev/null &
dd if=/dev/zero of=/var/tmp/load bs=1M count=64 2>/dev/null
sha256sum /usr/lib/x86_64-linux-gnu/libc.so.6 /usr/sbin/runc >/dev/null
find /etc /usr/lib/systemd -type f -exec cat {} + > /dev/null
rm -f /var/tmp/load`

// round is a minute or so of a busy PC: a task, work beside it, somebody who looks
// after it, and a pause.
func (w *worker) round(ctx context.Context) error {
	if !w.loaded {
		if err := w.runIn(ctx, w.image.Archive, "/usr/bin/docker", "load"); err != nil {
			return err
		}
		w.loaded = true
	}
	name := fmt.Sprintf("task-%d", w.count.Rounds)
	long := []string{"/usr/bin/docker", "run", "--rm", "-d", "--name", name, taskName, "work", "2h", "/tmp"}
	short := []string{"/usr/bin/docker", "run", "--rm", taskName, "work", "2s", "/tmp"}
	for _, argv := range [][]string{
		long,
		{"/bin/sh", "-ec", honestLoad},
		{"/usr/bin/docker", "ps"},
		{"/usr/bin/docker", "exec", name, taskEntry, "work", "1s", "/tmp"},
		short,
		{"/usr/bin/systemd-run", "--wait", "--collect", "/usr/bin/sleep", "1"},
		{"/usr/bin/journalctl", "-n", "50", "--no-pager"},
		{"/usr/bin/docker", "stop", name},
	} {
		if err := w.run(ctx, argv...); err != nil {
			return err
		}
	}
	w.count.Containers += 2
	w.count.Rounds++
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Second):
		return nil
	}
}

// judged counts events.
func judged(r HonestResult, events []lab.Event) HonestResult {
	r.Notes = map[string]int{}
	for _, e := range events {
		switch e.Name {
		case "challenge":
			r.Challenges++
		case "evidence":
			r.Answers++
		case "finding":
			if e.Text("class") == "info" {
				r.Notes[e.Text("reason")]++
				continue
			}
			r.FalseAlarms = append(r.FalseAlarms, Alarm{e.Text("probe"), e.Text("reason"), e.Text("class"), e.Text("detail")})
		case "verdict":
			if s := e.Text("state"); s == "suspect" || s == "quarantined" {
				r.Distrusted++
			}
		}
	}
	return r
}

// Table writes the figures.
func (r HonestResult) Table() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "honest PC: %.0f s, %d rounds, %d containers, %d commands, %d challenges, %d answers accepted\n",
		r.Seconds, r.Rounds, r.Containers, r.Logins, r.Challenges, r.Answers)
	fmt.Fprintf(&b, "false alarms: %d; verdicts other than trusted: %d\n", len(r.FalseAlarms), r.Distrusted)
	for _, a := range r.FalseAlarms {
		fmt.Fprintf(&b, "  %s %s %s: %s\n", a.Class, a.Probe, a.Reason, a.Detail)
	}
	return b.String()
}
