package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
	"portcullis/images/update"
	"portcullis/internal/cli"
	"portcullis/internal/clock"
	"portcullis/internal/config"
)

// commitLook is how often the health gate looks.
const commitLook = time.Second

func updateCommitCommand() *cli.Command {
	c := &cli.Command{
		Name: "update commit", Args: "[--timeout D] [--stable D] [--json]",
		Summary: "Wait until this release works, make it the active one and let the chip refuse older ones.\n" +
			"portcullis-commit.service runs it at every boot. A trial that does not work in time is restarted.",
		Example: "portcullis update commit --stable 30s",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		flags := cli.NewFlags(c, stdio)
		asJSON := flags.Bool("json", false, "one JSON object")
		noReboot := flags.Bool("no-reboot", false, "leave the restart of a trial that does not work to the operator")
		file := flags.String("config", config.DefaultPath, "configuration file; without one only the watchdog is checked")
		timeout := flags.Duration("timeout", 4*time.Minute, "how long the release may take to work")
		stable := flags.Duration("stable", 20*time.Second, "how long everything has to work without a gap")
		if err := noWords(c, stdio, flags, args); err != nil {
			return err
		}
		if *timeout <= 0 || *stable < 0 {
			return cli.Usagef("update commit takes times above 0")
		}
		return alone(func(o update.Options) error {
			r, err := update.Commit(ctx, update.CommitOptions{
				Card: o.Card, Running: o.Running, Checks: healthOf(*file), Counter: counterOf(o.Running),
				Timeout: *timeout, Stable: *stable, Every: commitLook, Clock: clock.Real{},
				Waiting: func(missing []string) { fmt.Fprintln(stdio.Err, waitingLine(missing, *stable)) },
			})
			if err == nil && *asJSON {
				return json.NewEncoder(stdio.Out).Encode(r)
			}
			if r.Committed {
				fmt.Fprintln(stdio.Out, committedLine(r))
			}
			if r.Restart && !*noReboot {
				err = errors.Join(err, restart(ctx))
			}
			return err
		})
	}
	return c
}

func waitingLine(missing []string, stable time.Duration) string {
	if len(missing) == 0 {
		return fmt.Sprintf("everything works; waiting %s for it to stay so", stable)
	}
	return "waiting for " + strings.Join(missing, "; ")
}

func committedLine(r update.CommitResult) string {
	if r.Changed {
		return fmt.Sprintf("release %d in slot %s works and is the active one now", r.Sequence, r.Slot)
	}
	return fmt.Sprintf("release %d in slot %s is the active one", r.Sequence, r.Slot)
}

// healthOf reads the settings. A release that cannot read those it is given does not work.
func healthOf(file string) []update.Check {
	c, err := config.Load(file)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return update.HealthChecks(c)
	}
	return []update.Check{{Name: "configuration", Run: func(context.Context) error { return err }}}
}

// counterOf is the chip's counter, nil on a Pi whose chip counts nothing.
func counterOf(h *card.Handover) update.Counter {
	switch hardware.Backend(h.Backend) {
	case hardware.BackendTPM2, hardware.BackendCombined:
	default:
		return nil
	}
	return chipCounter(h.NVIndex)
}

// chipCounter is the counter at an NV index. The chip is not held between two calls.
type chipCounter uint32

func (c chipCounter) with(f func(*tpm2.TPM) error) error {
	t, err := tpm2.Open(tpm2.DefaultPath, tpm2.Config{NVIndex: uint32(c)})
	if err != nil {
		return err
	}
	return errors.Join(f(t), t.Close())
}

func (c chipCounter) Value(ctx context.Context) (v uint64, err error) {
	err = c.with(func(t *tpm2.TPM) (err error) { v, err = t.Counter(ctx); return err })
	return v, err
}

func (c chipCounter) Raise(ctx context.Context, to uint64) error {
	return c.with(func(t *tpm2.TPM) error { return t.RaiseCounter(ctx, to) })
}

func updateAbortCommand() *cli.Command {
	c := &cli.Command{Name: "update abort", Args: "[--no-reboot]",
		Summary: "Take back a release on trial; where it is running the Pi starts the old one again.", Example: "portcullis update abort"}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		flags := cli.NewFlags(c, stdio)
		noReboot := flags.Bool("no-reboot", false, "leave the restart to the operator")
		if err := noWords(c, stdio, flags, args); err != nil {
			return err
		}
		return alone(func(o update.Options) error {
			running, err := update.Abort(o)
			if err != nil {
				return err
			}
			fmt.Fprintln(stdio.Out, "the release on trial is taken back")
			if !running || *noReboot {
				return nil
			}
			return restart(ctx)
		})
	}
	return c
}
