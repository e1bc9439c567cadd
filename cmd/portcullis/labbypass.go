//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"portcullis/internal/cli"
	"portcullis/lab/bypass"
	"portcullis/lab/dockerd"
)

func labBypass() *cli.Command {
	c := &cli.Command{
		Name: "lab bypass", Args: "[flags]",
		Summary: "Try every named way round the guard of Docker, against a real engine, and print which are closed. Exit 1 if one is open.",
		Example: "portcullis lab bypass\nportcullis lab bypass --attack engine- --json\nportcullis lab bypass --list\nportcullis lab bypass --engine v29-containerd",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		name := fs.String("attack", "", "only ways whose name contains this")
		list := fs.Bool("list", false, "print names and reasons, run nothing")
		rounds := fs.Int("rounds", bypass.DefaultRounds, "how often the ways that are races are run, within 5 minutes each")
		asJSON := fs.Bool("json", false, "one JSON object a way")
		kind := fs.String("engine", dockerd.Machine, "engine: "+strings.Join(dockerd.Kinds(), ", ")+"; one that has to be built takes minutes the first time")
		if words, err := cli.Parse(c, stdio, fs, args); err != nil {
			return err
		} else if len(words) != 0 {
			return cli.Usagef("lab bypass takes no words")
		}
		if *rounds < 1 {
			return cli.Usagef("--rounds is at least 1")
		}
		var attacks []bypass.Attack
		for _, a := range bypass.Attacks() {
			if strings.Contains(a.Name, *name) {
				attacks = append(attacks, a)
			}
		}
		if len(attacks) == 0 {
			return cli.Usagef("no way contains %q; see 'portcullis lab bypass --list'", *name)
		}
		if *list {
			for _, a := range attacks {
				if *asJSON {
					json.NewEncoder(stdio.Out).Encode(bypass.Result{Attack: a.Name, Reason: a.Reason})
				} else {
					fmt.Fprintf(stdio.Out, "%-38s %s\n", a.Name, a.Reason)
				}
			}
			return nil
		}
		if !slices.Contains(dockerd.Kinds(), *kind) {
			return cli.Usagef("no engine is called %q; known are %s", *kind, strings.Join(dockerd.Kinds(), ", "))
		}
		return runBypass(ctx, stdio, *kind, *rounds, attacks, *asJSON)
	}
	return c
}

func runBypass(ctx context.Context, stdio *cli.IO, kind string, rounds int, attacks []bypass.Attack, asJSON bool) (err error) {
	fmt.Fprintf(stdio.Err, "starting an engine, its guard and a log; then %d ways, about a minute\n", len(attacks))
	r, err := bypass.Start(ctx, kind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	r.Rounds = rounds
	open := 0
	_, err = r.Run(ctx, attacks, func(x bypass.Result) {
		if !x.Closed() {
			open++
		}
		if asJSON {
			json.NewEncoder(stdio.Out).Encode(x)
		} else {
			fmt.Fprintln(stdio.Out, x)
		}
	})
	if err != nil {
		return err
	}
	if !asJSON {
		fmt.Fprintf(stdio.Out, "%d ways, %d open\n", len(attacks), open)
	}
	if open > 0 {
		return &cli.ExitError{Code: 1}
	}
	return nil
}
