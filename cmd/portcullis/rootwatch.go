package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"periph.io/x/conn/v3/driver/driverreg"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpioreg"
	_ "periph.io/x/host/v3/gpioioctl" // the GPIO character device, the only driver that knows the Pi 5

	"portcullis/hardware"
	"portcullis/hardware/pins"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/watch"
	"portcullis/hardware/zymbit"
	"portcullis/images/card"
	"portcullis/internal/cli"
	"portcullis/internal/clock"
	"portcullis/internal/event"
)

func rootWatchCommand() *cli.Command {
	c := &cli.Command{
		Name: "root watch", Args: "[--config FILE] [--check]",
		Summary: "Watch the intrusion switch and a Zymbit module's perimeter, and do what the configuration opted in to: report,\n" +
			"lock (drop the PC, close the chip) or destroy. A service runs it; --check only reads the configuration.",
		Example: "portcullis root watch --check --config tamper.yaml",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		file := fs.String("config", watch.Path, "the configuration")
		check := fs.Bool("check", false, "read the configuration, say what it opts in to, and end")
		runDir := fs.String("run-dir", "/run/portcullis", "where the services' sockets are")
		tpm := addTPMFlags(fs)
		if err := noWords(c, stdio, fs, args); err != nil {
			return err
		}
		conf, err := watch.Load(*file)
		if err != nil {
			return err
		}
		if *check {
			fmt.Fprintf(stdio.Out, "valid; the strongest action is %s\n", conf.Policy.Most())
			return nil
		}
		lookup, err := lines(conf.Pins)
		if err != nil {
			return err
		}
		config := tpm.config()
		if h, err := readHandover(card.HandoverPath); err == nil && tpm.nv.v == tpm2.DefaultCounter {
			config.NVIndex = h.NVIndex
		}
		return watch.Run(ctx, watch.Options{
			Config: conf, Journal: filepath.Join(filepath.Dir(*file), "journal"), Lookup: lookup, Clock: clock.Real{},
			Zymbit: func() (hardware.Root, error) { return zymbit.Dial(ctx, zymbit.Socket) },
			Hands:  &watch.Hands{RunDir: *runDir, TPM: *tpm.device, Config: config},
			Log:    event.NewJSON(stdio.Out, "tamper", time.Now),
		})
	}
	return c
}

// presses are what can be done to the PC's buttons.
var presses = map[string]func(context.Context, *pins.Board) error{
	"power":     func(ctx context.Context, b *pins.Board) error { return b.PressPower(ctx, false) },
	"force-off": func(ctx context.Context, b *pins.Board) error { return b.PressPower(ctx, true) },
	"reset":     func(ctx context.Context, b *pins.Board) error { return b.PressReset(ctx) },
}

func rootPressCommand() *cli.Command {
	c := &cli.Command{
		Name: "root press", Args: "power | force-off | reset [--config FILE]",
		Summary: "Press a button of the PC through the relay that is wired to this Pi: power (0.5 s), force-off (power, 5 s) or\n" +
			"reset (0.5 s). The button is released also when this command is interrupted.",
		Example: "portcullis root press power",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		file := fs.String("config", watch.Path, "the file that names the lines")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 || presses[words[0]] == nil {
			return cli.Usagef("root press needs one of power, force-off, reset")
		}
		conf, err := watch.Load(*file)
		if err != nil {
			return err
		}
		// Only the relays: the other lines belong to the service that watches.
		wired := pins.Config{Power: conf.Pins.Power, Reset: conf.Pins.Reset, RelayActiveLow: conf.Pins.RelayActiveLow}
		lookup, err := lines(wired)
		if err != nil {
			return err
		}
		b, err := pins.Open(wired, lookup, clock.Real{})
		if err != nil {
			return err
		}
		return errors.Join(presses[words[0]](ctx, b), b.Close())
	}
	return c
}

// lines finds the header's lines by name; without a wired part the kernel is not asked.
func lines(c pins.Config) (func(string) gpio.PinIO, error) {
	if c.Power == "" && c.Reset == "" && c.Intrusion == "" && c.LED == "" && c.Buzzer == "" {
		return func(string) gpio.PinIO { return nil }, nil
	}
	if _, err := os.Stat("/dev/gpiochip0"); err != nil {
		return nil, &hardware.Error{Reason: pins.ReasonNoLine, Err: err}
	}
	if _, err := driverreg.Init(); err != nil {
		return nil, &hardware.Error{Reason: pins.ReasonNoLine, Err: err}
	}
	return gpioreg.ByName, nil
}
