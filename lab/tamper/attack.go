// Package tamper holds attacks on the running PC of a lab, each as what is done
// and what must be found of it. Tests commit many of them in one boot: after the
// second fatal finding a PC is quarantined and goes on being asked, so that every
// one of them shows in the findings.
package tamper

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"portcullis/lab"
)

// Attack is one change of a running PC.
type Attack struct {
	Name   string   // kebab-case
	Commit []string // shell commands in the PC, as root, run with -e one after another
	Host   func(context.Context, *lab.Lab) error
	Undo   []string // shell commands in the PC
	// FoundBy is the op that must report it, with one of Reasons and a detail that
	// holds Detail.
	FoundBy string
	Reasons []string
	Detail  string
	// Uptime is how long the PC must have been up: some changes are normal while a
	// machine starts.
	Uptime time.Duration
}

// Result tells what became of an attack.
type Result struct {
	Attack     string
	Found      bool
	Reason     string
	Detail     string
	Seconds    float64 // from the attack to the finding
	Challenges int     // asked in that time
}

func (r Result) String() string {
	if !r.Found {
		return fmt.Sprintf("%s: not found after %d challenges in %.1f s", r.Attack, r.Challenges, r.Seconds)
	}
	return fmt.Sprintf("%s: %s (%s) after %d challenges, %.1f s", r.Attack, r.Reason, r.Detail, r.Challenges, r.Seconds)
}

// commit makes the attack and returns the place in the log from which it was there.
func (a Attack) commit(ctx context.Context, l *lab.Lab) (int, error) {
	mark := l.Log.Mark()
	if len(a.Commit) > 0 {
		if err := shell(ctx, l, a.Commit); err != nil {
			return 0, fmt.Errorf("%s: %w", a.Name, err)
		}
	}
	if a.Host != nil {
		if err := a.Host(ctx, l); err != nil {
			return 0, fmt.Errorf("%s: %w", a.Name, err)
		}
	}
	return mark, nil
}

func shell(ctx context.Context, l *lab.Lab, lines []string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := l.Exec(ctx, "/bin/sh", "-ec", strings.Join(lines, "\n"))
	if err != nil {
		return err
	}
	if r.Exit != 0 || r.Error != "" {
		return fmt.Errorf("ended with %d %s: %s%s", r.Exit, r.Error, r.Stdout, r.Stderr)
	}
	return nil
}

// finds tells whether an event is the finding that the attack must cause.
func (a Attack) finds(e lab.Event) bool {
	return e.Name == "finding" && e.Text("probe") == a.FoundBy && slices.Contains(a.Reasons, e.Text("reason")) && strings.Contains(e.Text("detail"), a.Detail)
}

// All commits every attack, one after another and without a pause, and waits for
// the finding of each, together at most limit.
func All(ctx context.Context, l *lab.Lab, attacks []Attack, limit time.Duration) ([]Result, error) {
	type pending struct {
		attack Attack
		mark   int
		began  time.Time
	}
	var open []pending
	for _, a := range attacks {
		began := time.Now()
		mark, err := a.commit(ctx, l)
		if err != nil {
			return nil, err
		}
		open = append(open, pending{a, mark, began})
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out []Result
	for _, p := range open {
		e, err := l.Log.Wait(ctx, p.mark, p.attack.finds)
		r := Result{Attack: p.attack.Name, Found: err == nil, Seconds: time.Since(p.began).Seconds()}
		if r.Found {
			r.Reason, r.Detail, r.Seconds = e.Text("reason"), e.Text("detail"), e.Time.Sub(p.began).Seconds()
		}
		for _, c := range l.Log.Since(p.mark) {
			if c.Name == "challenge" {
				r.Challenges++
			}
			if p.attack.finds(c) {
				break
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// Undo takes back what can be taken back; the PC stays quarantined until it boots.
func Undo(ctx context.Context, l *lab.Lab, attacks []Attack) error {
	for _, a := range slices.Backward(attacks) {
		if len(a.Undo) > 0 {
			if err := shell(ctx, l, a.Undo); err != nil {
				return fmt.Errorf("undo %s: %w", a.Name, err)
			}
		}
	}
	return nil
}
