package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/internal/cli"
)

// pcFlag is --pc, which every command takes that is about one PC.
func pcFlag(fs *flag.FlagSet) *string {
	return fs.String("pc", "", "which PC, where the Pi has several: its name in attest.pcs")
}

// pcReport is one line of the list; a list is {"pcs": […]} with --json.
type pcReport struct {
	Name       string     `json:"name"`
	State      string     `json:"state"`
	Tier       string     `json:"tier"`
	Session    string     `json:"session"`
	NotAfter   *time.Time `json:"not_after"` // null where nothing is believed
	Challenges uint64     `json:"challenges"`
	Failures   uint64     `json:"failures"`
	Agent      bool       `json:"agent"`
}

// severalPCs lists the PCs of a Pi that has several; of one PC, and where attestd
// does not answer, none.
func severalPCs(ctx context.Context, runDir string) (out []pcReport) {
	r, err := attestClient(runDir).ListPCs(ctx, connect.NewRequest(&v1.ListPCsRequest{}))
	if err != nil || len(r.Msg.Pcs) == 1 && r.Msg.Pcs[0].Name == "" {
		return nil
	}
	for _, p := range r.Msg.Pcs {
		x := pcReport{Name: p.Name, State: short(p.State.String(), "TRUST_STATE_"), Tier: p.Tier, Session: p.Session,
			Challenges: p.Challenges, Failures: p.Failures, Agent: p.Agent}
		if p.NotAfterMs > 0 {
			t := time.UnixMilli(p.NotAfterMs)
			x.NotAfter = &t
		}
		out = append(out, x)
	}
	return out
}

// showPCs prints the list. Its exit code is 1 unless all are trusted.
func showPCs(stdio *cli.IO, all []pcReport, asJSON bool) error {
	var err error
	if asJSON {
		err = json.NewEncoder(stdio.Out).Encode(map[string][]pcReport{"pcs": all})
	} else {
		printPCs(stdio.Out, all, stdio.Colour)
	}
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.State != "trusted" {
			return &cli.ExitError{Code: 1}
		}
	}
	return nil
}

func printPCs(w io.Writer, all []pcReport, colour bool) {
	for _, p := range all {
		state, until, agent := fmt.Sprintf("%-11s", p.State), "-", "no agent"
		switch {
		case colour && p.State == "trusted":
			state = green + state + reset
		case colour:
			state = red + state + reset
		}
		if p.NotAfter != nil {
			until = p.NotAfter.Format("15:04:05")
		}
		if p.Agent {
			agent = "agent"
		}
		fmt.Fprintf(w, "%-24s %s tier %s, until %-8s %d challenges, %d failed, %s\n", p.Name, state, p.Tier, until, p.Challenges, p.Failures, agent)
	}
}
