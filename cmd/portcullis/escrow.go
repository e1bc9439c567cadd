package main

import (
	"context"
	"encoding/json"
	"fmt"

	"portcullis/hardware/escrow"
	"portcullis/internal/cli"
)

func init() { commands = append(commands, escrowCommand()) }

func escrowCommand() *cli.Command {
	return &cli.Command{
		Name: "escrow", Summary: "The operator's copy of a Pi's recovery key: a key pair for it, and reading it.",
		Sub: []*cli.Command{escrowKeygenCommand(), escrowOpenCommand()},
	}
}

func escrowKeygenCommand() *cli.Command {
	c := &cli.Command{
		Name: "escrow keygen", Args: "FILE [--json]",
		Summary: "Make the operator's key pair: the private key goes to a new FILE (mode 0600), the line for the card's\n" +
			"settings (operator_key) to the output. Keep FILE away from the cards. The age program reads it as well.",
		Example: "portcullis escrow keygen operator.key",
	}
	c.Run = func(_ context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		asJSON := fs.Bool("json", false, "one JSON object")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 {
			return cli.Usagef("escrow keygen takes one file")
		}
		to, err := escrow.Generate(words[0])
		if err != nil {
			return fmt.Errorf("escrow keygen: %w", err)
		}
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(map[string]string{"operator_key": to.String(), "identity": words[0]})
		}
		_, err = fmt.Fprintln(stdio.Out, to)
		return err
	}
	return c
}

func escrowOpenCommand() *cli.Command {
	c := &cli.Command{
		Name: "escrow open", Args: "--identity FILE CARD|FILE [--json]",
		Summary: "Decrypt the recovery key that a Pi left for its operator on its card. CARD is the card's device or image, or its\n" +
			"first partition; FILE is ESCROW.AGE copied from it. What is printed opens that Pi's disk.",
		Example: "portcullis escrow open --identity operator.key /dev/sdb\nportcullis escrow open --identity operator.key ESCROW.AGE --json | jq -r .recovery_key",
	}
	c.Run = func(_ context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		identity := fs.String("identity", "", "the operator's private key, made by escrow keygen or age-keygen")
		asJSON := fs.Bool("json", false, "one JSON object")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 || *identity == "" {
			return cli.Usagef("escrow open needs --identity and one card or file")
		}
		id, err := escrow.LoadIdentity(*identity)
		if err != nil {
			return fmt.Errorf("escrow open: %w", err)
		}
		file, err := escrow.Load(words[0])
		if err != nil {
			return fmt.Errorf("escrow open: %w", err)
		}
		rec, err := escrow.Decrypt(id, file)
		if err != nil {
			return fmt.Errorf("escrow open: %w", err)
		}
		defer rec.Key.Wipe()
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(map[string]string{"volume": rec.Volume, "recovery_key": string(rec.Key.Passphrase())})
		}
		_, err = fmt.Fprintf(stdio.Out, "volume        %s\nrecovery key  %s\n", rec.Volume, rec.Key.Passphrase())
		return err
	}
	return c
}
