package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"portcullis/images/card"
	"portcullis/images/update"
	"portcullis/internal/cli"
)

func init() { commands = append(commands, updateCommand()) }

// updateLock keeps two of them apart.
const updateLock = "/run/portcullis/update.lock"

func updateCommand() *cli.Command {
	c := &cli.Command{
		Name: "update", Args: "FILE | status | commit | abort",
		Summary: "Change the release of this Pi: write FILE into the slot not in use and start it on trial.\n" +
			"A release that does not prove itself within 3 boots gives way to the old one by itself.",
		Example: "portcullis update pi.pcupdate\nportcullis update status --json",
	}
	parts := map[string]*cli.Command{
		"status": updateStatusCommand(), "commit": updateCommitCommand(), "abort": updateAbortCommand(),
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		if len(args) > 0 && parts[args[0]] != nil {
			return parts[args[0]].Run(ctx, stdio, args[1:])
		}
		return updateApply(ctx, c, stdio, args)
	}
	return c
}

// onThisPi reads what pi-init said and finds the card.
func onThisPi() (update.Options, error) {
	b, err := os.ReadFile(card.HandoverPath)
	if err != nil {
		return update.Options{}, &update.Error{Reason: update.ReasonNotPi, Err: err}
	}
	h, err := card.ParseHandover(b)
	if err != nil {
		return update.Options{}, &update.Error{Reason: update.ReasonNotPi, Err: err}
	}
	c, err := update.OpenRunning()
	return update.Options{Card: c, Running: h}, err
}

// alone runs f on this Pi's card while no other update command does.
func alone(f func(update.Options) error) error {
	o, err := onThisPi()
	if err != nil {
		return err
	}
	unlock, err := update.Lock(updateLock)
	if err != nil {
		return err
	}
	defer unlock()
	return f(o)
}

func updateApply(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	flags := cli.NewFlags(c, stdio)
	asJSON := flags.Bool("json", false, "one JSON object")
	noReboot := flags.Bool("no-reboot", false, "leave the restart to the operator")
	words, err := cli.Parse(c, stdio, flags, args)
	if err != nil {
		return err
	}
	if len(words) != 1 {
		return cli.Usagef("update needs one FILE, or status, commit or abort")
	}
	f, err := os.Open(words[0])
	if err != nil {
		return err
	}
	defer f.Close()
	return alone(func(o update.Options) error {
		meter := update.NewMeter(stdio.Err, stdio.Colour, time.Now)
		o.Progress = meter.Show
		r, err := update.Apply(ctx, f, o)
		meter.End()
		if err != nil {
			return err
		}
		if *asJSON {
			err = json.NewEncoder(stdio.Out).Encode(r)
		} else {
			_, err = fmt.Fprintln(stdio.Out, describeUpdate(r))
		}
		if err != nil || !r.Restart || *noReboot {
			return err
		}
		return restart(ctx)
	})
}

func describeUpdate(r update.Result) string {
	switch {
	case !r.Restart:
		return fmt.Sprintf("release %d is in use in slot %s already", r.Sequence, r.Slot)
	case !r.Changed:
		return fmt.Sprintf("release %d is in slot %s already; the next start is its trial", r.Sequence, r.Slot)
	}
	return fmt.Sprintf("release %d (kernel %s) is in slot %s, %d MB written and read back; the next start is its trial", r.Sequence, r.Kernel, r.Slot, r.Written>>20)
}

// restart asks systemd for it, which stops the services and syncs.
func restart(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "systemctl", "--no-block", "reboot").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl reboot: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func updateStatusCommand() *cli.Command {
	c := &cli.Command{Name: "update status", Args: "[--json]", Summary: "Show the slots of this Pi: active, on trial, started next.",
		Example: "portcullis update status"}
	c.Run = func(_ context.Context, stdio *cli.IO, args []string) error {
		flags := cli.NewFlags(c, stdio)
		asJSON := flags.Bool("json", false, "one JSON object")
		if err := noWords(c, stdio, flags, args); err != nil {
			return err
		}
		o, err := onThisPi()
		if err != nil {
			return err
		}
		s, err := update.ReadStatus(o)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(s)
		}
		fmt.Fprintf(stdio.Out, "running  release %d in slot %s\nactive   release %d in slot %s\n", s.Running.Sequence, s.Running.Slot, s.Active.Sequence, s.Active.Slot)
		if s.Trial != nil {
			fmt.Fprintf(stdio.Out, "trial    release %d in slot %s, started %d of %d times\n", s.Trial.Sequence, s.Trial.Slot, s.Trial.Attempts, card.MaxAttempts)
		}
		fmt.Fprintf(stdio.Out, "next     slot %s\n", s.Next)
		if s.LastFailure != "" {
			fmt.Fprintf(stdio.Out, "failed   %s\n", s.LastFailure)
		}
		return nil
	}
	return c
}
