//go:build !appliance

package main

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/hpc"
	"portcullis/images/manifest"
	"portcullis/images/pi"
	"portcullis/internal/cli"
)

func init() { commands = append(commands, imageCommand()) }

func imageCommand() *cli.Command {
	c := &cli.Command{Name: "image", Summary: "Build and check the images of the PC and of the Pi."}
	c.Sub = []*cli.Command{imageHPCCommand(), imageKernelCommand(), imagePiCommand(), imageServicesCommand(), imageVerifyCommand(), imageSignCommand(), imageKeygenCommand()}
	return c
}

func imageHPCCommand() *cli.Command {
	c := &cli.Command{
		Name:    "image hpc",
		Summary: "Build the PC's image: root file system, initrd, UKI and signed manifest.",
		Example: "portcullis image keygen release.key\nportcullis image hpc --profile generic --key release.key --gateway-key gateway.pub --out image/",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		var o hpc.Options
		fs.StringVar(&o.Profile, "profile", manifest.ProfileGeneric, "lab (QEMU, with a command channel for tests) or generic (real PCs)")
		fs.StringVar(&o.OutDir, "out", "", "directory for the artefacts (required)")
		fs.StringVar(&o.Kernel, "kernel", "", "debian or hardened, the one of 'image kernel' (default: what the recipe says, which is debian)")
		fs.StringVar(&o.Recipe, "recipe", "", "a recipe that extends ours")
		fs.Uint64Var(&o.Version, "version", 1, "image version; machines refuse one older than the newest they accepted")
		fs.BoolVar(&o.Refresh, "refresh", false, "ask the archive for newer packages")
		fs.StringVar(&o.CacheDir, "cache", "", "cache directory (default $"+hpc.CacheEnv+" or build/cache)")
		var keys, trusted stringList
		fs.Var(&keys, "key", "release key that signs (required; may be given again)")
		fs.Var(&trusted, "trust-key", "public half of a release key that signs elsewhere (may be given again)")
		fs.IntVar(&o.Threshold, "threshold", 0, "signatures that the PC asks for (default: one for each --key)")
		gateway := fs.String("gateway-key", "", "public key of the Pi's attestd (default gateway.pub beside the first --key)")
		notAfter := fs.String("not-after", "", "last day of validity, 2006-01-02 (default: two years after the newest package)")
		bin := fs.String("bin", "", "directory with hpc-init, hpc-agent and hpc-lab (default: beside this program, else built from source)")
		asJSON := fs.Bool("json", false, "print the result as JSON")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 || o.OutDir == "" || len(keys) == 0 {
			return cli.Usagef("image hpc: --key and --out are needed, and nothing else")
		}
		if err := loadKeys(&o, keys, trusted, *gateway); err != nil {
			return err
		}
		if *notAfter != "" {
			if o.NotAfter, err = time.Parse("2006-01-02", *notAfter); err != nil {
				return cli.Usagef("image hpc: --not-after %q is not a day such as 2006-01-02", *notAfter)
			}
		}
		o.Binaries = findPrograms(*bin)
		o.Progress = hpc.NewReporter(stdio.Err, stdio.Colour)
		r, err := hpc.Build(ctx, o)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(r.Summary())
		}
		r.Print(stdio.Out, stdio.Colour)
		return nil
	}
	return c
}

func loadKeys(o *hpc.Options, keys, trusted []string, gateway string) error {
	for _, k := range keys {
		key, err := manifest.LoadKey(k)
		if err != nil {
			return err
		}
		o.Signers = append(o.Signers, crypto.Signer(key))
	}
	for _, k := range trusted {
		key, err := manifest.LoadPublicKey(k)
		if err != nil {
			return err
		}
		o.TrustKeys = append(o.TrustKeys, key)
	}
	if gateway == "" {
		gateway = filepath.Join(filepath.Dir(keys[0]), "gateway.pub")
		if _, err := os.Stat(gateway); errors.Is(err, os.ErrNotExist) {
			return cli.Usagef("image hpc: --gateway-key is needed: the public key that 'attestd --init-key' prints on the Pi")
		}
	}
	var err error
	o.GatewayKey, err = manifest.LoadPublicKey(gateway)
	return err
}

// findPrograms takes the PC's programs from dir, or from beside this program
// when all of them are there.
func findPrograms(dir string) hpc.Binaries {
	in := func(dir string) hpc.Binaries {
		return hpc.Binaries{Init: filepath.Join(dir, "hpc-init"), Agent: filepath.Join(dir, "hpc-agent"), Lab: filepath.Join(dir, "hpc-lab")}
	}
	if dir != "" {
		return in(dir)
	}
	self, err := os.Executable()
	if err != nil {
		return hpc.Binaries{}
	}
	b := in(filepath.Dir(self))
	for _, p := range []string{b.Init, b.Agent, b.Lab} {
		if _, err := os.Stat(p); err != nil {
			return hpc.Binaries{}
		}
	}
	return b
}

func imageVerifyCommand() *cli.Command {
	c := &cli.Command{
		Name: "image verify", Args: "DIR",
		Summary: "Recompute everything in an image and name the first thing that differs.",
		Example: "portcullis image verify image/ --trust trust.json",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		trust := fs.String("trust", "", "trust file: release keys and threshold (default DIR/"+hpc.TrustFile+", which proves nothing about who made the image)")
		floor := fs.Uint64("min-version", 0, "refuse an older version")
		var release stringList
		fs.Var(&release, "release-key", "of a Pi's image: public half of a release key (may be given again; default: those that the image itself names)")
		asJSON := fs.Bool("json", false, "print the result as JSON")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 {
			return cli.Usagef("image verify: one directory is needed")
		}
		if pi.IsImage(words[0]) {
			return verifyPi(ctx, stdio, words[0], release, *asJSON)
		}
		report := hpc.Verify(ctx, hpc.VerifyOptions{Dir: words[0], TrustFile: *trust, Now: time.Now(), Floor: *floor})
		if *asJSON {
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
	return c
}

func imageSignCommand() *cli.Command {
	c := &cli.Command{
		Name: "image sign", Args: "DIR",
		Summary: "Add a signature to an image whose release keys are kept on different machines.",
		Example: "portcullis image sign image/ --key second-release.key",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		key := fs.String("key", "", "release key that signs (required)")
		asJSON := fs.Bool("json", false, "print the result as JSON")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 || *key == "" {
			return cli.Usagef("image sign: one directory and --key are needed")
		}
		signer, err := manifest.LoadKey(*key)
		if err != nil {
			return err
		}
		report, err := hpc.Cosign(ctx, words[0], signer, time.Now())
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(report)
		}
		fmt.Fprintf(stdio.Out, "%s version %d is signed by %s: %d of %d signatures\n", report.Image, report.Version, report.Key, report.Signatures, report.Threshold)
		return nil
	}
	return c
}

func imageKeygenCommand() *cli.Command {
	c := &cli.Command{
		Name: "image keygen", Args: "FILE",
		Summary: "Make a release key: FILE (keep it) and FILE.pub (give it to the Pi).",
		Example: "portcullis image keygen release.key",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		forPi := fs.Bool("pi", false, "make the three keys of a Pi's releases: FILE, FILE.policy and FILE.boot")
		asJSON := fs.Bool("json", false, "print the result as JSON")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 {
			return cli.Usagef("image keygen: one file name is needed")
		}
		if *forPi {
			return keygenPi(stdio, words[0], *asJSON)
		}
		pub, err := manifest.GenerateKey(words[0])
		if err != nil {
			return err
		}
		public := words[0] + manifest.PublicSuffix
		if *asJSON {
			return json.NewEncoder(stdio.Out).Encode(map[string]string{"key": words[0], "public": public, "id": manifest.KeyID(pub)})
		}
		fmt.Fprintf(stdio.Out, "%s   secret, mode 0600: whoever has it can sign images\n%s   public half, id %s\n", words[0], public, manifest.KeyID(pub))
		return nil
	}
	return c
}
