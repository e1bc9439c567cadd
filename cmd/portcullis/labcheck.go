//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"portcullis/internal/cli"
	"portcullis/lab"
	"portcullis/lab/qemu"
	"portcullis/lab/scenario"
)

func labCheck() *cli.Command {
	c := &cli.Command{
		Name: "lab check", Args: "[flags]",
		Summary: "Run the scenarios (boots, attacks, crashes) and print a table with times. Exit 1 if any failed.",
		Example: "portcullis lab check\nportcullis lab check --firmware uefi-http --scenario trusted --json\nportcullis lab check --pi image\nportcullis lab check --list",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		lf := newLabFlags(fs)
		firmware := fs.String("firmware", "all", "of the trusted-… scenarios: all, uefi-http, uefi-pxe, ipxe or bios")
		name := fs.String("scenario", "", "only scenarios whose name contains this")
		onPi := fs.String("pi", lab.PiNetns, "netns: all scenarios with the services in a namespace; image: the main ones through the built SD card")
		list := fs.Bool("list", false, "print names and claims, run nothing")
		verbose := fs.Bool("events", false, "show the events of the labs too, on the error stream")
		asJSON := fs.Bool("json", false, "one JSON object a scenario")
		if words, err := cli.Parse(c, stdio, fs, args); err != nil {
			return err
		} else if len(words) != 0 {
			return cli.Usagef("lab check takes no words")
		}
		if _, err := qemu.ParseFirmware(*firmware); err != nil && *firmware != "all" {
			return cli.Usagef("--firmware: %v, or all", err)
		}
		plays := map[string]func() []scenario.Play{lab.PiNetns: scenario.Plays, lab.PiImage: scenario.PiPlays}[*onPi]
		if plays == nil {
			return cli.Usagef("--pi %q: use %s or %s", *onPi, lab.PiNetns, lab.PiImage)
		}
		want := func(scene string) bool {
			fw, isBoot := strings.CutPrefix(scene, scenario.TrustedPrefix)
			return strings.Contains(scene, *name) && (!isBoot || *firmware == "all" || fw == *firmware)
		}
		o := scenario.Options{Builder: &lab.Builder{}, Name: *lf.name, State: *lf.state, Report: func(r scenario.Result) { printResult(stdio, r, *asJSON) }}
		if *verbose {
			p := &lab.Printer{Out: stdio.Err, JSON: *asJSON, Colour: stdio.Colour}
			o.Events = p.Print
		}
		ran, failed := 0, 0
		for _, play := range plays() {
			if *list {
				for _, s := range play.Scenes {
					if want(s.Name) {
						printListed(stdio, play.Name, s, *asJSON)
						ran++
					}
				}
				continue
			}
			for _, r := range play.Run(ctx, o, want) {
				ran++
				if !r.OK {
					failed++
				}
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if ran == 0 {
			return cli.Usagef("no scenario contains %q; see 'portcullis lab check --list'", *name)
		}
		if !*asJSON && !*list {
			fmt.Fprintf(stdio.Out, "%d scenarios, %d failed\n", ran, failed)
		}
		if failed > 0 {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	return c
}

func printResult(stdio *cli.IO, r scenario.Result, asJSON bool) {
	if asJSON {
		json.NewEncoder(stdio.Out).Encode(r)
		return
	}
	word, colour := "ok  ", green
	if !r.OK {
		word, colour = "FAIL", red
	}
	if stdio.Colour {
		word = colour + word + reset
	}
	fmt.Fprintf(stdio.Out, "%s %7.1fs  %-28s %s\n", word, r.Seconds, r.Scene, r.Title)
	if r.Detail != "" {
		fmt.Fprintf(stdio.Out, "                %s\n", strings.ReplaceAll(r.Detail, "\n", "\n                "))
	}
}

func printListed(stdio *cli.IO, play string, s scenario.Scene, asJSON bool) {
	if asJSON {
		json.NewEncoder(stdio.Out).Encode(map[string]string{"play": play, "scenario": s.Name, "title": s.Title})
		return
	}
	fmt.Fprintf(stdio.Out, "%-28s %s\n", s.Name, s.Title)
}
