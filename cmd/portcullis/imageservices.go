//go:build !appliance

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/service"
	"portcullis/internal/cli"
	"portcullis/verifier/approval"
	"portcullis/verifier/declared"
)

func imageServicesCommand() *cli.Command {
	c := &cli.Command{
		Name: "image services",
		Summary: "Build the Pi's services as container images, each one program on nothing: archives, and the profiles that\n" +
			"verifierd starts them with. With --approve-key their approvals as well; other approvers add theirs with 'approve --add'.",
		Example: "portcullis image services --out services/ --approve-key one.key --version 3\nportcullis image pi --services services/ …",
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
		var sign serviceApproval
		fs.Var(&sign.keys, "approve-key", "approver's key file; may be given again")
		fs.Uint64Var(&sign.version, "version", 0, "of the approvals, from 1; a higher one replaces lower ones")
		fs.IntVar(&sign.days, "days", 365, "how long the approvals are valid, from 1 to 3650")
		asJSON := fs.Bool("json", false, "one JSON object for each image")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 || o.OutDir == "" || o.Arch != "arm64" && o.Arch != "amd64" {
			return cli.Usagef("image services: --out is needed, --arch is arm64 or amd64")
		}
		if len(sign.keys) > 0 && (sign.version == 0 || sign.days < 1 || sign.days > 3650) {
			return cli.Usagef("image services: --approve-key needs --version, and --days is from 1 to 3650")
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
			if err := sign.write(b); err != nil {
				return err
			}
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

// serviceApproval is what 'image services' signs.
type serviceApproval struct {
	keys    stringList
	version uint64
	days    int
}

// write puts NAME.json, what verifierd starts the service with, beside its archive, and
// NAME.approval where there are keys.
func (s serviceApproval) write(b service.Built) error {
	profile, err := declared.Profile(b.Name, declared.Standard)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(profile.Listed(), "", "  ")
	if err != nil {
		return err
	}
	base := strings.TrimSuffix(b.File, ".tar")
	if err := os.WriteFile(base+".json", append(text, '\n'), 0o644); err != nil {
		return err
	}
	if len(s.keys) == 0 {
		return nil
	}
	signers, err := (&signFlags{keys: s.keys}).signers()
	if err != nil {
		return err
	}
	begin := time.Now().UTC().Truncate(time.Second)
	envelope, err := approval.Approval{Schema: approval.Schema, Name: b.Name, Version: s.version, Purpose: declared.Purpose(b.Name),
		Image: approval.Image{Manifest: b.Manifest, Config: b.Config, Layers: b.Layers}, Profile: profile,
		NotBefore: begin, NotAfter: begin.AddDate(0, 0, s.days)}.Sign(signers...)
	if err != nil {
		return err
	}
	return writeEnvelope(base+".approval", envelope)
}
