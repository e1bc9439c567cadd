//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"fmt"

	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/manifest"
	"portcullis/images/pi"
	"portcullis/internal/cli"
	"portcullis/verifier/declared"
)

func imagePiCommand() *cli.Command {
	c := &cli.Command{
		Name:    "image pi",
		Summary: "Build the Pi's image: the card, the update of the same release, block map and bill of materials.",
		Example: "portcullis image keygen --pi release\nportcullis image pi --model pi4 --profile release --key release --out pi/",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		var o pi.Options
		fs.StringVar(&o.Model, "model", "", "pi4, pi5 or qemu (required)")
		fs.StringVar(&o.Profile, "profile", card.ProfileRelease, "dev (loose boot files; for qemu with a command channel for tests) or release (signed boot.img)")
		fs.StringVar(&o.OutDir, "out", "", "directory for the artefacts (required)")
		fs.StringVar(&o.Recipe, "recipe", "", "a recipe that extends ours")
		fs.Uint64Var(&o.Sequence, "sequence", 1, "of the release; a chip that has accepted a newer one refuses it")
		fs.BoolVar(&o.Refresh, "refresh", false, "ask the archive for newer packages")
		fs.StringVar(&o.CacheDir, "cache", "", "cache directory (default $"+debroot.CacheEnv+" or build/cache)")
		fs.StringVar(&o.Bin, "bin", "", "directory with static linux/arm64 programs (default: built from source)")
		fs.StringVar(&o.Root, "root", card.RootAuto, "chip that first boot enrols: tpm2, zymbit, combined (both needed) or auto (all that answer)")
		fs.StringVar(&o.ZymbitDebs, "zymbit-debs", "", "directory with the vendor's packages for a Zymkey")
		serviceDir := fs.String("services", "", "directory with the Pi's services as container images and their approvals, of 'image services'; they go into the system")
		key := fs.String("key", "", "prefix of the release keys that 'image keygen --pi' made (required)")
		var trusted stringList
		fs.Var(&trusted, "trust-key", "public half of a release key that signs elsewhere (may be given again)")
		fs.IntVar(&o.Threshold, "threshold", 0, "signatures that the Pi asks for of an update (default 1)")
		asJSON := fs.Bool("json", false, "print the result as JSON")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 || o.OutDir == "" || *key == "" || o.Model == "" {
			return cli.Usagef("image pi: --model, --key and --out are needed, and nothing else")
		}
		if o.Keys, err = pi.LoadKeys(*key); err != nil {
			return err
		}
		for _, k := range trusted {
			public, err := manifest.LoadPublicKey(k)
			if err != nil {
				return err
			}
			o.TrustKeys = append(o.TrustKeys, public)
		}
		if *serviceDir != "" {
			if o.Services, err = declared.Archives(ctx, *serviceDir); err != nil {
				return err
			}
		}
		o.Progress = debroot.NewReporter(stdio.Err, stdio.Colour)
		r, err := pi.Build(ctx, o)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(r)
		}
		r.Print(stdio.Out, stdio.Colour)
		fmt.Fprintf(stdio.Out, "  %-12s %.1f s\n", "took", r.Took.Seconds())
		return nil
	}
	return c
}

// keygenPi makes the three keys of a Pi's releases.
func keygenPi(stdio *cli.IO, prefix string, asJSON bool) error {
	k, err := pi.GenerateKeys(prefix)
	if err != nil {
		return err
	}
	id := manifest.KeyID(k.Public())
	if asJSON {
		return json.NewEncoder(stdio.Out).Encode(map[string]string{
			"key": prefix, "public": prefix + manifest.PublicSuffix, "id": id, "policy": prefix + pi.PolicySuffix, "boot": prefix + pi.BootSuffix,
		})
	}
	fmt.Fprintf(stdio.Out, "%s   signs images and updates; public half %s, id %s\n", prefix, prefix+manifest.PublicSuffix, id)
	fmt.Fprintf(stdio.Out, "%s   signs what the Pi's chip obeys\n", prefix+pi.PolicySuffix)
	fmt.Fprintf(stdio.Out, "%s   signs boot.img for the Pi's bootloader\n", prefix+pi.BootSuffix)
	fmt.Fprintln(stdio.Out, "All three are secret, mode 0600: whoever has them can make releases for your Pis.")
	return nil
}

// verifyPi checks a Pi's image for 'image verify'.
func verifyPi(ctx context.Context, stdio *cli.IO, dir string, keys []string, asJSON bool) error {
	o := pi.VerifyOptions{Dir: dir}
	for _, k := range keys {
		public, err := manifest.LoadPublicKey(k)
		if err != nil {
			return err
		}
		o.Keys = append(o.Keys, public)
	}
	report := pi.Verify(ctx, o)
	if asJSON {
		if err := json.NewEncoder(stdio.Out).Encode(report); err != nil {
			return err
		}
	} else {
		report.Print(stdio.Out, stdio.Colour)
	}
	if !report.OK {
		return &cli.ExitError{Code: 1}
	}
	return nil
}
