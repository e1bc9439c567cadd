//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"portcullis/internal/cli"
	"portcullis/lab"
	"portcullis/lab/tamper"
)

func labTamper() *cli.Command {
	c := &cli.Command{
		Name: "lab tamper", Args: "[flags]",
		Summary: "Attack the PC of a lab in many ways and print a table of what found each and when; or keep an honest PC busy, of which nothing may be found. Exit 1 if anything was not as expected.",
		Example: "portcullis lab tamper\nportcullis lab tamper --attack kexec\nportcullis lab tamper --rounds 5 --json\nportcullis lab tamper --honest 1h\nportcullis lab tamper --list",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		lf := newLabFlags(fs)
		name := fs.String("attack", "", "only attacks whose name contains this; several words with commas")
		rounds := fs.Int("rounds", 1, "how often all of them are committed, each time in new boots")
		limit := fs.Duration("limit", 2*time.Minute, "how long the findings are waited for")
		honest := fs.Duration("honest", 0, "no attack: keep an honest PC busy for this time and count what is found of it")
		list := fs.Bool("list", false, "print the attacks and what is expected, run nothing")
		verbose := fs.Bool("events", false, "show the events of the lab too, on the error stream")
		asJSON := fs.Bool("json", false, "one JSON object an attack, and one at the end")
		words, err := cli.Parse(c, stdio, fs, args)
		switch {
		case err != nil:
			return err
		case len(words) != 0:
			return cli.Usagef("lab tamper takes no words")
		case *rounds < 1 || *rounds > 1000:
			return cli.Usagef("--rounds %d: use 1 to 1000", *rounds)
		case *limit < time.Second:
			return cli.Usagef("--limit %s: use 1s or more", *limit)
		case *honest < 0 || *honest > 0 && *name != "":
			return cli.Usagef("--honest takes a time and goes without --attack")
		}
		var events func(lab.Event)
		if *verbose {
			events = (&lab.Printer{Out: stdio.Err, JSON: *asJSON, Colour: stdio.Colour}).Print
		}
		builder := &lab.Builder{}
		if *honest > 0 {
			return honestPC(ctx, stdio, *asJSON, tamper.Honest{Builder: builder, Name: *lf.name, State: *lf.state, For: *honest, Events: events})
		}
		var attacks []tamper.Attack
		for _, a := range tamper.Attacks {
			if slices.ContainsFunc(strings.Split(*name, ","), func(word string) bool { return strings.Contains(a.Name, word) }) {
				attacks = append(attacks, a)
			}
		}
		if len(attacks) == 0 {
			return cli.Usagef("no attack contains %q; see 'portcullis lab tamper --list'", *name)
		}
		if *list {
			for _, a := range attacks {
				printAttack(stdio, a, *asJSON)
			}
			return nil
		}
		report, err := tamper.Run(ctx, tamper.Options{Builder: builder, Name: *lf.name, State: *lf.state, Attacks: attacks, Rounds: *rounds, Limit: *limit,
			Events: events, Say: func(what string) { fmt.Fprintln(stdio.Err, what) }, Report: func(r tamper.Result) {
				if *asJSON {
					json.NewEncoder(stdio.Out).Encode(r)
				} else {
					fmt.Fprintf(stdio.Err, "    %s: %s after %.1f s: %s %s\n", r.Attack, r.Outcome, r.Seconds, r.Reason, r.Detail)
				}
			}})
		if *asJSON {
			json.NewEncoder(stdio.Out).Encode(map[string]any{"rows": report.Rows(), "honest_answers": report.Answers, "false_alarms": report.Alarms, "ok": report.OK()})
		} else {
			fmt.Fprint(stdio.Out, report.Table())
		}
		if err != nil {
			return err
		}
		if !report.OK() {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	return c
}

func printAttack(stdio *cli.IO, a tamper.Attack, asJSON bool) {
	what := "found by " + a.FoundBy + ": " + strings.Join(a.Reasons, ", ")
	switch {
	case a.Refusal != "":
		what = "refused by the kernel"
	case a.Unseen != "":
		what = "not found: " + a.Unseen
	}
	if asJSON {
		json.NewEncoder(stdio.Out).Encode(map[string]string{"attack": a.Name, "expected": what})
		return
	}
	fmt.Fprintf(stdio.Out, "%-30s %s\n", a.Name, what)
}

// honestPC keeps an honest PC busy.
func honestPC(ctx context.Context, stdio *cli.IO, asJSON bool, h tamper.Honest) error {
	h.Report = func(r tamper.HonestResult) {
		fmt.Fprintf(stdio.Err, "%.0f s: %d containers, %d answers, %d false alarms\n", r.Seconds, r.Containers, r.Answers, len(r.FalseAlarms))
	}
	r, err := h.Run(ctx)
	if asJSON {
		json.NewEncoder(stdio.Out).Encode(r)
	} else {
		fmt.Fprint(stdio.Out, r.Table())
	}
	if err != nil {
		return err
	}
	if !r.OK() {
		return &cli.ExitError{Code: 1}
	}
	return nil
}
