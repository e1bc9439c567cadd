package main

import (
	"context"
	"encoding/json"
	"fmt"

	"portcullis/internal/cli"
	"portcullis/verifier/enginedisk"
)

func init() { commands = append(commands, engineCommand()) }

func engineCommand() *cli.Command {
	disk := &cli.Command{
		Name: "engine disk", Args: "--link LINK FILE [--json]",
		Summary: "Make the disk of Docker's engine: FILE behind dm-crypt, with a key that is drawn now and kept nowhere, and an empty\n" +
			"file system. LINK will lead to the device. A disk that is in use stays. A service of the Pi's image runs it.",
		Example: "portcullis engine disk --link /run/portcullis/store/device /var/lib/portcullis/store/disk",
	}
	disk.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(disk, stdio)
		link := fs.String("link", "", "symbolic link to make")
		asJSON := fs.Bool("json", false, "machine-readable")
		words, err := cli.Parse(disk, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 || *link == "" {
			return cli.Usagef("engine disk needs a file and --link")
		}
		d, err := enginedisk.Open(ctx, enginedisk.Options{File: words[0], Link: *link})
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(d)
		}
		what := "a new key"
		if d.Kept {
			what = "in use already"
		}
		fmt.Fprintf(stdio.Out, "%s: %d MiB, %s\n", d.Device, d.Bytes>>20, what)
		return nil
	}
	return &cli.Command{Name: "engine", Summary: "What Docker's engine needs on the Pi", Sub: []*cli.Command{disk}}
}
