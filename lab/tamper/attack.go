// Package tamper holds attacks on the running PC of a lab, each as what is done
// and what must be found of it, a runner for them, and an honest busy PC of which
// nothing may be found. Many attacks are committed in one boot: after the second
// fatal finding a PC is quarantined and goes on being asked, so that every one of
// them shows in the findings.
package tamper

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"portcullis/lab"
)

// Stage is when in a boot an attack is committed.
type Stage int

// Stages, in the order in which a run comes to them.
const (
	Together Stage = iota // with all the others of this stage, on a PC that was just trusted
	Settled               // likewise, when the PC no longer counts as starting
	Alone                 // after them, one at a time, and taken back
	Reboot                // in another boot of its own
	Beside                // likewise, with a second, clean PC beside it
	Played                // by a scene of lab/scenario, with a PC that is played or boots anew
)

// Attack is one change of a PC. It must be found, refused by the PC's kernel, or
// is known not to be found.
type Attack struct {
	Name   string // kebab-case
	Stage  Stage
	Commit []string // shell commands in the PC, as root, run with -e one after another
	Host   func(context.Context, *lab.Lab) error
	Undo   []string // shell commands in the PC
	Second []string // shell commands in the second PC, before Commit, where Stage is Beside
	Unhost func(context.Context, *lab.Lab) error
	Scene  string // of lab/scenario, where Stage is Played
	// FoundBy is the op that must report it (or evidence, channel), with one of Reasons
	// and a detail that holds Detail.
	FoundBy string
	Reasons []string
	Detail  string
	// Refusal is what the kernel says that refuses it, a regular expression in lower
	// case; then nothing is there to be found.
	Refusal string
	// Unseen says why nothing finds it.
	Unseen string
	// USB: on a PC with a USB controller and Debian's full kernel, in a boot of its own.
	// The cloud kernel of the other boots has no code for USB.
	USB bool
	// Docker: the PC's container runtime is needed, and its image is loaded before.
	Docker bool
}

// commit makes the attack and returns the place in the log from which it was there.
func (a Attack) commit(ctx context.Context, l *lab.Lab) (mark int, refused string, err error) {
	mark = l.Log.Mark()
	if len(a.Commit) > 0 {
		err := shell(ctx, l, a.Commit)
		if err != nil {
			said := strings.TrimSpace(err.Error())
			if a.Refusal == "" || !regexp.MustCompile(a.Refusal).MatchString(strings.ToLower(said)) {
				return 0, "", fmt.Errorf("%s: %w", a.Name, err)
			}
			return mark, said[max(0, len(said)-200):], nil
		}
	}
	if a.Host != nil {
		if err := a.Host(ctx, l); err != nil {
			return 0, "", fmt.Errorf("%s: %w", a.Name, err)
		}
	}
	return mark, "", nil
}

// undo takes back what can be taken back.
func (a Attack) undo(ctx context.Context, l *lab.Lab) error {
	if a.Unhost != nil {
		if err := a.Unhost(ctx, l); err != nil {
			return fmt.Errorf("undo %s: %w", a.Name, err)
		}
	}
	if len(a.Undo) > 0 {
		if err := shell(ctx, l, a.Undo); err != nil {
			return fmt.Errorf("undo %s: %w", a.Name, err)
		}
	}
	return nil
}

// shellLimit bounds the commands of one attack: under emulation Docker takes seconds for each.
const shellLimit = 2 * time.Minute

func shell(ctx context.Context, l *lab.Lab, lines []string) error {
	ctx, cancel := context.WithTimeout(ctx, shellLimit+10*time.Second)
	defer cancel()
	r, err := l.ExecIn(ctx, nil, shellLimit, "/bin/sh", "-ec", strings.Join(lines, "\n"))
	if err != nil {
		return err
	}
	if r.Exit != 0 || r.Error != "" {
		return fmt.Errorf("ended with %d %s: %s%s", r.Exit, r.Error, r.Stdout, r.Stderr)
	}
	return nil
}

// finds tells whether an event is the finding that the attack must cause. What is
// known not to be found is found by any finding that names its Detail.
func (a Attack) finds(e lab.Event) bool {
	if a.FoundBy == "claim" { // pxed tells that, and no probe
		return e.Name == "claim.double"
	}
	return e.Name == "finding" && e.Text("class") != "info" && (a.FoundBy == "" || e.Text("probe") == a.FoundBy) &&
		(len(a.Reasons) == 0 || slices.Contains(a.Reasons, e.Text("reason"))) && (a.Detail != "" || a.Unseen == "") && strings.Contains(e.Text("detail"), a.Detail)
}
