//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	"portcullis/images/debroot"
	"portcullis/images/kernel"
	"portcullis/internal/cli"
)

func imageKernelCommand() *cli.Command {
	c := &cli.Command{
		Name:    "image kernel",
		Summary: "Build the hardened kernel of the PC from Debian's source; 'image hpc --kernel hardened' takes it.",
		Example: "portcullis image kernel\nportcullis image kernel --again --place /elsewhere",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		var o kernel.Options
		fs.StringVar(&o.CacheDir, "cache", "", "cache directory (default $"+debroot.CacheEnv+" or build/cache)")
		fs.StringVar(&o.Place, "place", "", "directory that the source has during the build (default /build); the kernel does not depend on it")
		fs.IntVar(&o.Jobs, "jobs", runtime.NumCPU(), "compilers at a time")
		fs.IntVar(&o.Nice, "nice", 15, "how far the build stands back behind other work, 0 to 19")
		fs.BoolVar(&o.Anew, "again", false, "build once more although the cache has it, and fail if the bytes differ")
		fs.BoolVar(&o.Refresh, "refresh", false, "ask the archive for newer packages")
		asJSON := fs.Bool("json", false, "print the result as JSON")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 {
			return cli.Usagef("image kernel: no arguments are needed")
		}
		o.Progress = debroot.NewReporter(stdio.Err, stdio.Colour)
		b, err := kernel.Build(ctx, o)
		if err != nil {
			return err
		}
		s, err := b.Summary()
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(s)
		}
		fmt.Fprintf(stdio.Out, "%s\n  kernel  %d bytes, sha256 %s\n  in      %s\n", s.Release, s.Size, s.SHA256, s.Dir)
		if o.Anew {
			fmt.Fprintln(stdio.Out, "  built again: the same bytes")
		}
		return nil
	}
	return c
}
