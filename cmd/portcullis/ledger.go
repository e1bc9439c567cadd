package main

import (
	"context"
	"encoding/json"
	"fmt"

	"portcullis/internal/cli"
	"portcullis/pxe/ledger"
)

func init() { commands = append(commands, ledgerCommand()) }

func ledgerCommand() *cli.Command {
	show := &cli.Command{
		Name: "ledger show", Args: "[--state DIR] [--session ID] [--pieces] [--json]",
		Summary: "Show what was sent to the PC: session, artefact, byte range, result, digest, client.",
		Example: "portcullis ledger show\nportcullis ledger show --json | jq 'select(.artefact == \"root.img\")'",
	}
	show.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return ledgerShow(show, stdio, args) }
	verify := &cli.Command{
		Name: "ledger verify", Args: "[--state DIR] [--json]",
		Summary: "Check the chain of the served-ledger: exit 0 when it holds, 1 with the first broken record.",
		Example: "portcullis ledger verify --state /var/lib/portcullis",
	}
	verify.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return ledgerVerify(verify, stdio, args) }
	return &cli.Command{Name: "ledger", Summary: "The record of every byte that was sent to the PC", Sub: []*cli.Command{show, verify}}
}

const (
	stateFlag    = "/var/lib/portcullis"
	stateMeaning = "state directory of the services"
)

func ledgerShow(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	state := fs.String("state", stateFlag, stateMeaning)
	var f ledger.Filter
	fs.StringVar(&f.Session, "session", "", "only this boot session")
	fs.BoolVar(&f.Pieces, "pieces", false, "also the pieces that are recorded before they are sent")
	asJSON := fs.Bool("json", false, "one JSON object a line")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("ledger show takes no words")
	}
	return ledger.Show(stdio.Out, ledger.Path(*state), f, *asJSON)
}

func ledgerVerify(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	state := fs.String("state", stateFlag, stateMeaning)
	asJSON := fs.Bool("json", false, "one JSON object")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("ledger verify takes no words")
	}
	v, err := ledger.Verify(ledger.Path(*state))
	if err != nil {
		return err
	}
	switch {
	case *asJSON:
		err = json.NewEncoder(stdio.Out).Encode(v)
	case v.OK:
		_, err = fmt.Fprintf(stdio.Out, "ok: %d records, %d responses, %d bytes sent\nhead %s\n", v.Records, v.Responses, v.Bytes, v.Head)
	default:
		_, err = fmt.Fprintf(stdio.Out, "broken: record %d at byte %d of %s: %s\n%d records before it hold\n", v.BrokenSeq, v.BrokenAt, v.Path, v.Detail, v.Records)
	}
	if err == nil && !v.OK {
		return &cli.ExitError{Code: 1}
	}
	return err
}
