package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/fingerprint"
	"portcullis/internal/cli"
	"portcullis/internal/rpc"
)

func init() { commands = append(commands, fingerprintCommand()) }

func fingerprintCommand() *cli.Command {
	return &cli.Command{
		Name: "fingerprint", Summary: "Show what the PC is made of, approve a change, prove a single part to somebody else.",
		Sub: []*cli.Command{fingerprintShowCommand(), fingerprintApproveCommand(), fingerprintOpenCommand(), fingerprintVerifyCommand()},
	}
}

// fingerprintReport is the --json shape of show.
type fingerprintReport struct {
	Machine    string              `json:"machine"`
	Generation uint64              `json:"generation"`
	Root       string              `json:"root"`
	Boots      uint32              `json:"boots"`
	Needed     uint32              `json:"boots_needed"`
	ApprovedBy string              `json:"approved_by"` // key id, "" until an operator approves
	Parts      []fingerprintPart   `json:"parts"`
	Waiting    *fingerprintWaiting `json:"waiting"` // null where no drift waits
}

type fingerprintPart struct {
	Class    string `json:"class"`
	Slot     string `json:"slot"`
	Value    string `json:"value"`
	Unstable bool   `json:"unstable,omitempty"`
}

type fingerprintWaiting struct {
	Root       string                     `json:"root"`
	Generation uint64                     `json:"generation"`
	Changes    []fingerprintWaitingChange `json:"changes"`
}

type fingerprintWaitingChange struct {
	Kind   string `json:"kind"`
	Class  string `json:"class"`
	Slot   string `json:"slot"`
	Was    string `json:"was,omitempty"`
	Is     string `json:"is,omitempty"`
	Level  string `json:"level"`
	Within bool   `json:"within_session,omitempty"`
}

func fingerprintShowCommand() *cli.Command {
	c := &cli.Command{
		Name: "fingerprint show", Args: "[--machine MAC] [--parts] [--json]",
		Summary: "Show the PC's fingerprint and the drift that waits for an operator. Exit 1 where one waits, or nothing is enrolled.",
		Example: "portcullis fingerprint show\nportcullis fingerprint show --json | jq .waiting.changes",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		runDir, asJSON := sharedFlags(fs)
		machine := fs.String("machine", "", "MAC of the PC; the configured one")
		parts := fs.Bool("parts", false, "list every part")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 {
			return cli.Usagef("fingerprint show takes no words")
		}
		r, err := getFingerprint(ctx, *runDir, *machine)
		if err != nil {
			return err
		}
		if *asJSON {
			err = json.NewEncoder(stdio.Out).Encode(r)
		} else {
			printFingerprint(stdio.Out, r, *parts)
		}
		if err == nil && r.Waiting != nil {
			return &cli.ExitError{Code: 1}
		}
		return err
	}
	return c
}

func fingerprintClient(runDir string) portcullisv1connect.FingerprintClient {
	return portcullisv1connect.NewFingerprintClient(rpc.Client(filepath.Join(runDir, rpc.AttestSocket)), rpc.BaseURL)
}

// fingerprintCall bounds one call to attestd.
const fingerprintCall = 10 * time.Second

func getFingerprint(ctx context.Context, runDir, machine string) (*fingerprintReport, error) {
	ctx, cancel := context.WithTimeout(ctx, fingerprintCall)
	defer cancel()
	got, err := fingerprintClient(runDir).GetFingerprint(ctx, connect.NewRequest(&v1.GetFingerprintRequest{Machine: machine}))
	if err != nil {
		return nil, fmt.Errorf("fingerprint: %s", plainly(err))
	}
	m := got.Msg
	r := &fingerprintReport{Machine: m.Machine, Generation: m.Generation, Root: m.Root, Boots: m.Boots, Needed: m.BootsNeeded,
		ApprovedBy: m.ApprovedBy, Parts: []fingerprintPart{}}
	for _, p := range m.Parts {
		r.Parts = append(r.Parts, fingerprintPart{p.Class, p.Slot, p.Value, p.Unstable})
	}
	if m.WaitingRoot != "" {
		r.Waiting = &fingerprintWaiting{Root: m.WaitingRoot, Generation: m.WaitingGeneration}
		for _, x := range m.Changes {
			r.Waiting.Changes = append(r.Waiting.Changes, fingerprintWaitingChange{x.Kind, x.Class, x.Slot, x.Was, x.Is, x.Level, x.WithinSession})
		}
	}
	return r, nil
}

// plainly is the message of a refusal without the transport's word before it.
func plainly(err error) string {
	var e *connect.Error
	if errors.As(err, &e) && e.Code() != connect.CodeUnavailable {
		return e.Message()
	}
	return err.Error()
}

func printFingerprint(w io.Writer, r *fingerprintReport, parts bool) {
	fmt.Fprintf(w, "machine     %s\nroot        %s   generation %d, %d parts\n", r.Machine, r.Root, r.Generation, len(r.Parts))
	fmt.Fprintf(w, "enrolled    over %d of %d boots\n", r.Boots, r.Needed)
	if r.ApprovedBy != "" {
		fmt.Fprintf(w, "approved    by key %s\n", r.ApprovedBy)
	} else {
		fmt.Fprintln(w, "approved    not by an operator")
	}
	if parts {
		for _, p := range r.Parts {
			note := ""
			if p.Unstable {
				note = "   (unstable: not compared)"
			}
			fmt.Fprintf(w, "part        %s %s: %q%s\n", p.Class, p.Slot, p.Value, note)
		}
	}
	if r.Waiting == nil {
		fmt.Fprintln(w, "drift       none")
		return
	}
	printWaiting(w, r.Waiting)
}

// printWaiting quotes values: they come from the PC.
func printWaiting(w io.Writer, p *fingerprintWaiting) {
	fmt.Fprintf(w, "waits       root %s, generation %d\n", p.Root, p.Generation)
	for _, c := range p.Changes {
		within := ""
		if c.Within {
			within = "   while the session ran"
		}
		fmt.Fprintf(w, "drift       %-7s %-7s %s %q", c.Level, c.Kind, c.Class, c.Slot)
		if c.Was != "" {
			fmt.Fprintf(w, " was %q", c.Was)
		}
		if c.Is != "" {
			fmt.Fprintf(w, " is %q", c.Is)
		}
		fmt.Fprintln(w, within)
	}
}

// approvalOf words what an operator signs of a report.
func approvalOf(r *fingerprintReport, note string) (*fingerprint.Approval, error) {
	record := &fingerprint.Record{Machine: r.Machine, Generation: r.Generation, Root: r.Root}
	if r.Waiting == nil {
		return fingerprint.NewApproval(record, nil, time.Now(), note), nil
	}
	p := &fingerprint.Pending{Record: &fingerprint.Record{Generation: r.Waiting.Generation, Root: r.Waiting.Root}}
	for _, c := range r.Waiting.Changes {
		var l fingerprint.Level
		if err := l.UnmarshalJSON(fmt.Appendf(nil, "%q", c.Level)); err != nil {
			return nil, err
		}
		p.Changes = append(p.Changes, fingerprint.Change{Kind: c.Kind, Class: c.Class, Slot: c.Slot, Level: l})
	}
	return fingerprint.NewApproval(record, p, time.Now(), note), nil
}
