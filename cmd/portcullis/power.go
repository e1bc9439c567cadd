package main

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"time"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/hardware/pins"
	"portcullis/hardware/power"
	"portcullis/hardware/watch"
	"portcullis/internal/cli"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

func init() { commands = append(commands, powerCommand()) }

func powerCommand() *cli.Command {
	serve := &cli.Command{
		Name: "power serve", Args: "relay | hook [--config FILE] [--pins FILE]",
		Summary: "Be attestd's hands: press the PC's buttons through the relay, or run the operator's commands. A service runs it,\n" +
			"one for each, since they need different privileges.",
		Example: "portcullis power serve relay",
	}
	serve.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		return powerServe(ctx, serve, stdio, args)
	}
	return &cli.Command{Name: "power", Summary: "The services that take the PC down for attestd", Sub: []*cli.Command{serve}}
}

func powerServe(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	file := fs.String("config", config.DefaultPath, "configuration file")
	wires := fs.String("pins", watch.Path, "the file that names the lines")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 || (words[0] != "relay" && words[0] != "hook") {
		return cli.Usagef("power serve needs one of relay, hook")
	}
	conf, err := config.Load(*file)
	if err != nil {
		return err
	}
	events := event.NewJSON(stdio.Out, "power", time.Now)
	if words[0] == "hook" {
		if conf.Power.HookReset == nil && conf.Power.HookOff == nil {
			events.Emit("power.unwired", event.Fields{"file": *file})
			return nil
		}
		h := power.NewHook(power.Commands{Reset: conf.Power.HookReset, Off: conf.Power.HookOff, Timeout: conf.Power.HookTimeout}, events)
		return servePower(ctx, conf, rpc.HookSocket, h, events)
	}
	w, err := watch.Load(*wires)
	if err != nil {
		return err
	}
	// Only the relays: the other lines belong to the service that watches.
	wired := pins.Config{Power: w.Pins.Power, Reset: w.Pins.Reset, RelayActiveLow: w.Pins.RelayActiveLow}
	if wired.Power == "" && wired.Reset == "" {
		events.Emit("power.unwired", event.Fields{"file": *wires})
		return nil
	}
	lookup, err := lines(wired)
	if err != nil {
		return err
	}
	board, err := pins.Open(wired, lookup, clock.Real{})
	if err != nil {
		return err
	}
	return errors.Join(servePower(ctx, conf, rpc.RelaySocket, power.NewRelay(board, events), events), board.Close())
}

func servePower(ctx context.Context, conf *config.Config, socket string, h portcullisv1connect.PowerHandler, events *event.Writer) error {
	path := filepath.Join(conf.RunDir, socket)
	l, err := rpc.Listen(path, conf.Power.AllowedUIDs)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewPowerHandler(h))
	events.Emit("ready", event.Fields{"socket": path})
	return rpc.Serve(ctx, l, mux)
}
