//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"fmt"

	"portcullis/images/debroot"
	"portcullis/images/service"
	"portcullis/internal/cli"
)

func imageServicesCommand() *cli.Command {
	c := &cli.Command{
		Name:    "image services",
		Summary: "Build the Pi's services as container images, each one program on nothing: archives for 'approve' and 'load'.",
		Example: "portcullis image services --out services/\nportcullis approve services/pxed.tar --name pxed --version 1 --purpose service/pxed --profile pxed.json --key one.key",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		var o service.Options
		var names stringList
		fs.Var(&names, "service", "only this one (may be given again): attestd, pxed")
		fs.StringVar(&o.Arch, "arch", "arm64", "of the Pi; amd64 for tests")
		fs.StringVar(&o.OutDir, "out", "", "directory for the archives (required)")
		fs.StringVar(&o.CacheDir, "cache", "", "cache directory (default $"+debroot.CacheEnv+" or build/cache)")
		fs.StringVar(&o.Bin, "bin", "", "directory with static programs for --arch (default: built from source)")
		asJSON := fs.Bool("json", false, "one JSON object for each image")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 || o.OutDir == "" || o.Arch != "arm64" && o.Arch != "amd64" {
			return cli.Usagef("image services: --out is needed, --arch is arm64 or amd64")
		}
		if o.CacheDir == "" {
			if o.CacheDir, err = debroot.DefaultCache(); err != nil {
				return err
			}
		}
		o.Names, o.Progress = names, debroot.NewReporter(stdio.Err, stdio.Colour)
		built, err := service.Build(ctx, o)
		if err != nil {
			return err
		}
		for _, b := range built {
			if *asJSON {
				err = json.NewEncoder(stdio.Out).Encode(b)
			} else {
				_, err = fmt.Fprintf(stdio.Out, "%s\n  for       %s\n  manifest  %s\n  config    %s\n  bytes     %d, sha256 %s\n", b.File, b.Platform, b.Manifest, b.Config, b.Bytes, b.SHA256)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return c
}
