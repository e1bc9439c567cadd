//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"portcullis/internal/cli"
	"portcullis/internal/event"
	"portcullis/lab"
	"portcullis/lab/channel"
	"portcullis/lab/qemu"
	"portcullis/lab/wire"
	"portcullis/lab/world"
)

func init() { commands = append(commands, labCommand()) }

func labCommand() *cli.Command {
	return &cli.Command{
		Name: "lab", Summary: "A whole Portcullis on this machine: the services in a namespace, the PC in QEMU with real firmware. Needs root.",
		Sub: []*cli.Command{labUp(), labExec(), labStatus(), labDown(), labCheck(), labBypass(), labTamper(), labWorld()},
	}
}

// labFlags are the flags that every command about one lab has.
type labFlags struct{ name, state *string }

func newLabFlags(fs interface {
	String(string, string, string) *string
}) labFlags {
	return labFlags{
		name:  fs.String("name", "lab", "of the lab; two of different names run side by side"),
		state: fs.String("state", lab.DefaultState, "where labs keep their state"),
	}
}

func labUp() *cli.Command {
	c := &cli.Command{
		Name: "lab up", Args: "[flags]",
		Summary: "Build, boot the PC through the real services and show what happens until Ctrl-C.",
		Example: "portcullis lab up\nportcullis lab up --firmware uefi-pxe --until trusted --timeout 3m --json\nportcullis lab up --pi image --until trusted",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		lf := newLabFlags(fs)
		firmware := fs.String("firmware", "uefi-http", "uefi-http, uefi-pxe, ipxe or bios")
		onPi := fs.String("pi", lab.PiNetns, "netns: the Pi's services in a namespace; image: a machine that boots the built SD card")
		tpm := fs.String("tpm", "none", "none, or pc: the PC gets a TPM 2.0 (swtpm)")
		until := fs.String("until", "", "trusted: end when the PC is trusted, with 0")
		keep := fs.Bool("keep", false, "with --until: leave the lab running; 'lab down' ends it")
		timeout := fs.Duration("timeout", 5*time.Minute, "with --until: give up this time after the PC's power-on")
		asJSON := fs.Bool("json", false, "one JSON object a line")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		fw, err := qemu.ParseFirmware(*firmware)
		switch {
		case len(words) != 0:
			return cli.Usagef("lab up takes no words")
		case err != nil:
			return cli.Usagef("--firmware: %v", err)
		case *onPi != lab.PiNetns && *onPi != lab.PiImage:
			return cli.Usagef("--pi %q: use %s or %s", *onPi, lab.PiNetns, lab.PiImage)
		case *tpm != "none" && *tpm != "pc":
			return cli.Usagef("--tpm %q: use none or pc", *tpm)
		case *until != "" && *until != "trusted":
			return cli.Usagef("--until %q: the only state to wait for is trusted", *until)
		case *keep && *until == "":
			return cli.Usagef("--keep needs --until trusted: without it the lab stays until Ctrl-C")
		case *timeout <= 0:
			return cli.Usagef("--timeout %s: must be more than 0", *timeout)
		}
		printer := &lab.Printer{Out: stdio.Out, JSON: *asJSON, Colour: stdio.Colour}
		o := lab.Options{Name: *lf.name, State: *lf.state, Firmware: fw, Pi: *onPi, TPM: *tpm == "pc", Events: printer.Print}
		return runLab(ctx, o, *until, *keep, *timeout)
	}
	return c
}

func runLab(ctx context.Context, o lab.Options, until string, keep bool, timeout time.Duration) (err error) {
	l, err := lab.Start(ctx, o)
	if err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, l.Close())
		}
	}()
	if until == "" {
		if err := l.PowerOn(ctx); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	began := time.Now()
	verdict, err := l.Boot(ctx, timeout)
	if err != nil {
		return err
	}
	l.Event("lab.trusted", map[string]any{"seconds": time.Since(began).Seconds(), "session": verdict.Text("session"),
		"tier": verdict.Text("tier"), "posture": verdict.Text("posture")})
	if keep {
		kept = true
		return l.Leave()
	}
	return nil
}

func labExec() *cli.Command {
	c := &cli.Command{
		Name: "lab exec", Args: "[--name NAME] [--on pc|pi] -- CMD [ARG…]",
		Summary: "Run CMD as root in the PC or the Pi, over the command channel that only a lab image has. Ends with CMD's exit code.",
		Example: "portcullis lab exec -- uname -a\nportcullis lab exec --on pi -- portcullis root status",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		lf := newLabFlags(fs)
		on := fs.String("on", "pc", "pc, or pi: the Pi of a lab that was started with --pi image")
		limit := fs.Duration("timeout", time.Minute, "kill CMD after this time")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) == 0 {
			return cli.Usagef("lab exec: a command is needed after --")
		}
		if *on != "pc" && *on != "pi" {
			return cli.Usagef("--on %q: use pc or pi", *on)
		}
		s, err := lab.Look(*lf.state, *lf.name)
		if err != nil {
			return err
		}
		if *on == "pi" && s.Pi != lab.PiImage {
			return cli.Usagef("the Pi of lab %s is a namespace: use 'ip netns exec %s CMD'", s.Name, wire.Names(s.Name)[0])
		}
		ctx, cancel := context.WithTimeout(ctx, *limit+5*time.Second)
		defer cancel()
		r, err := channel.Run(ctx, lab.Channels(s.Dir)[*on], channel.Request{Argv: words, LimitMS: limit.Milliseconds()})
		if err != nil {
			return err
		}
		stdio.Out.Write(r.Stdout)
		stdio.Err.Write(r.Stderr)
		if r.Error != "" {
			return fmt.Errorf("lab exec: %s", r.Error)
		}
		if r.Exit != 0 {
			return &cli.ExitError{Code: r.Exit}
		}
		return nil
	}
	return c
}

func labStatus() *cli.Command {
	c := &cli.Command{
		Name: "lab status", Args: "[--name NAME] [--json]",
		Summary: "Show the lab's processes and what its Pi believes of the PC. Exit 0 only when the PC is trusted.",
		Example: "portcullis lab status\nportcullis lab status --json | jq .verdict.state",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		lf := newLabFlags(fs)
		asJSON := fs.Bool("json", false, "one JSON object")
		if words, err := cli.Parse(c, stdio, fs, args); err != nil {
			return err
		} else if len(words) != 0 {
			return cli.Usagef("lab status takes no words")
		}
		s, err := lab.Look(*lf.state, *lf.name)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		r, err := labReport(ctx, s)
		if err != nil {
			return err
		}
		if *asJSON {
			err = json.NewEncoder(stdio.Out).Encode(struct {
				Lab lab.Status `json:"lab"`
				statusReport
			}{s, r})
			if err != nil {
				return err
			}
		} else {
			dead := ""
			for name, alive := range s.Processes {
				if !alive {
					dead += " " + name
				}
			}
			if dead != "" {
				dead = "   not running:" + dead
			}
			fmt.Fprintf(stdio.Out, "lab      %s over %s, Pi: %s, since %s%s\n", s.Name, s.Firmware, s.Pi, s.Created.Format("15:04:05"), dead)
			printStatus(stdio.Out, r, stdio.Colour)
		}
		if r.Verdict == nil || r.Verdict.State != "trusted" {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	return c
}

// labReport asks the lab's services, in the Pi where that is a machine.
func labReport(ctx context.Context, s lab.Status) (statusReport, error) {
	if s.Pi != lab.PiImage {
		return gather(ctx, s.RunDir, ""), nil
	}
	out, err := channel.Run(ctx, lab.Channels(s.Dir)["pi"], channel.Request{Argv: []string{"portcullis", "status", "--json"}})
	if err != nil {
		return statusReport{}, err
	}
	var r statusReport
	if err := json.Unmarshal(out.Stdout, &r); err != nil {
		return r, fmt.Errorf("lab status: the Pi answered %q %s%s", out.Stdout, out.Stderr, out.Error)
	}
	return r, nil
}

func labDown() *cli.Command {
	c := &cli.Command{
		Name: "lab down", Args: "[--name NAME | --all]",
		Summary: "End a lab and remove everything it made, also of one whose owner died.",
		Example: "portcullis lab down\nportcullis lab down --all",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		lf := newLabFlags(fs)
		all := fs.Bool("all", false, "every lab below --state")
		if words, err := cli.Parse(c, stdio, fs, args); err != nil {
			return err
		} else if len(words) != 0 {
			return cli.Usagef("lab down takes no words")
		}
		names := []string{*lf.name}
		if *all {
			names = lab.Names(*lf.state)
		}
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		var errs []error
		for _, n := range names {
			err := lab.Down(ctx, *lf.state, n)
			if errors.Is(err, lab.ErrNoLab) && !*all {
				fmt.Fprintf(stdio.Out, "no lab %s\n", n)
				continue
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	return c
}

// labWorld is the process that a lab runs in its namespace net.
func labWorld() *cli.Command {
	c := &cli.Command{
		Name: "lab world", Args: "--control SOCKET",
		Summary: "(lab up runs this) The internet of a lab: web, DNS and echo at 203.0.113.10, and a count of every frame.",
		Example: "ip netns exec NAME portcullis lab world --control /run/world.sock",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		control := fs.String("control", "", "unix socket that tells what was counted")
		if words, err := cli.Parse(c, stdio, fs, args); err != nil {
			return err
		} else if len(words) != 0 || *control == "" {
			return cli.Usagef("lab world needs --control and takes no words")
		}
		events := event.NewJSON(os.Stdout, "world", time.Now)
		return world.Run(ctx, world.Options{
			Interface: wire.NetPort, Addresses: []netip.Addr{wire.World.Addr(), wire.World6.Addr()}, Control: *control,
		}, func() { events.Emit("ready", event.Fields{}) })
	}
	return c
}
