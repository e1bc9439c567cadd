package main

import (
	"context"
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
