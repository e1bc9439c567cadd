package main

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"portcullis/images/manifest"
	"portcullis/images/update"
	"portcullis/internal/cli"
	"portcullis/verifier/approval"
	"portcullis/verifier/fetch"
	"portcullis/verifier/image"
	"portcullis/verifier/record"
)

func init() { commands = append(commands, approveCommand(), revokeCommand()) }

func approveCommand() *cli.Command {
	c := &cli.Command{
		Name: "approve", Args: "IMAGE.tar|DIR|REGISTRY/NAME@sha256:… --name NAME --version N --purpose PURPOSE --profile FILE --key KEY [--out FILE]",
		Summary: "Look through a container image and sign an approval of it: a file for `portcullis approvals add`.\n" +
			"One of a registry is fetched for that, by its digest, into a directory below $TMPDIR that is removed afterwards.\n" +
			"Where several approvers are needed, each adds a signature with --add. Keys are those of `portcullis image keygen`.",
		Example: "portcullis approve pxed.tar --name pxed --version 3 --purpose service/pxed --profile pxed.json --key one.key\n" +
			"portcullis approve --add pxed-3.approval --key two.key",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error { return approve(ctx, c, stdio, args) }
	return c
}

func revokeCommand() *cli.Command {
	c := &cli.Command{
		Name: "revoke", Args: "FILE.approval|IMAGE.tar|DIGEST --why TEXT --key KEY [--out FILE]",
		Summary: "Sign a revocation: of an approval (its file, or its digest with --approval), or of an image and all that was or\n" +
			"will be said for it (its archive, or a digest). `portcullis approvals add` puts it into force; nothing undoes it.",
		Example: "portcullis revoke pxed-3.approval --why \"CVE in libfoo\" --key one.key\nportcullis revoke --add pxed-3.revocation --key two.key",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error { return revoke(ctx, c, stdio, args) }
	return c
}

// signFlags are those of what is signed.
type signFlags struct {
	keys   stringList
	add    *string
	out    *string
	asJSON *bool
}

func (f *signFlags) register(fs interface {
	String(name, value, usage string) *string
	Bool(name string, value bool, usage string) *bool
}, kind string) {
	f.add = fs.String("add", "", "add signatures to this "+kind+", which stays where it is")
	f.out = fs.String("out", "", "write to this file; default: name and version")
	f.asJSON = fs.Bool("json", false, "one JSON object")
}

func (f *signFlags) signers() (signers []crypto.Signer, err error) {
	if len(f.keys) == 0 {
		return nil, cli.Usagef("give --key: `portcullis image keygen` makes one")
	}
	for _, k := range f.keys {
		key, err := manifest.LoadKey(k)
		if err != nil {
			return nil, err
		}
		signers = append(signers, key)
	}
	return signers, nil
}

func approve(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	var f signFlags
	fs.Var(&f.keys, "key", "approver's key file; may be given again")
	f.register(fs, "approval")
	name := fs.String("name", "", "what it is a version of, in small letters")
	version := fs.Uint64("version", 0, "of this approval, from 1; a higher one of the name replaces lower ones")
	purpose := fs.String("purpose", "", "what it may be started for, for instance service/pxed")
	profile := fs.String("profile", "", "file with the most that it may have; `strict`: nothing, 64 MiB, 64 processes, half a core")
	platform := fs.String("platform", "", "of the image, for instance linux/arm64, where there are several")
	var way reach
	way.register(fs)
	days := fs.Int("days", 365, "how long it is valid, from 1 to 3650")
	from := fs.String("not-before", "", "valid from, RFC 3339; default: now")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	signers, err := f.signers()
	if err != nil {
		return err
	}
	if *f.add != "" {
		if len(words) != 0 {
			return cli.Usagef("--add takes no image")
		}
		return addSignatures(stdio, f, signers)
	}
	if len(words) != 1 || *name == "" || *version == 0 || *purpose == "" || *profile == "" {
		return cli.Usagef("approve takes an image, --name, --version, --purpose, --profile and --key")
	}
	if *days < 1 || *days > 3650 {
		return cli.Usagef("--days is from 1 to 3650")
	}
	begin := time.Now().UTC().Truncate(time.Second)
	if *from != "" {
		if begin, err = time.Parse(time.RFC3339, *from); err != nil {
			return cli.Usagef("--not-before: %v", err)
		}
	}
	a := approval.Approval{Schema: approval.Schema, Name: *name, Version: *version, Purpose: *purpose, NotBefore: begin, NotAfter: begin.AddDate(0, 0, *days)}
	if a.Profile, err = readProfile(*profile); err != nil {
		return err
	}
	if err := way.check(); err != nil {
		return err
	}
	look := lookThrough
	if isRemote(words[0]) {
		look = way.lookThrough
	}
	i, err := look(ctx, stdio, words[0], *platform)
	if err != nil {
		return err
	}
	a.Image = i.Image()
	envelope, err := a.Sign(signers...)
	if err != nil {
		return err
	}
	out := *f.out
	if out == "" {
		out = fmt.Sprintf("%s-%d.approval", a.Name, a.Version)
	}
	if err := writeEnvelope(out, envelope); err != nil {
		return err
	}
	return tellSigned(stdio, f, out, envelope)
}

// strictProfile is what an image gets that needs nothing.
var strictProfile = approval.Profile{User: "65534:65534", Network: approval.NetworkNone, Limits: approval.Limits{MemoryBytes: 64 << 20, Pids: 64, MilliCPU: 500}}

func readProfile(file string) (approval.Profile, error) {
	if file == "strict" {
		return strictProfile, nil
	}
	b, err := readSmall(file)
	if err != nil {
		return approval.Profile{}, err
	}
	return approval.ParseProfile(b)
}

// lookThrough fetches an image of a registry and reads it. Its name says which one it is:
// what is signed is not what somebody else's server has just then.
func (r *reach) lookThrough(ctx context.Context, stdio *cli.IO, word, platform string) (a *image.Archive, err error) {
	if strings.Contains(word, "://") {
		return nil, cli.Usagef("approve takes a file, a directory, or an image of a registry by its digest; fetch what is at a URL first")
	}
	ref, err := fetch.ParseReference(word)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "approve")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	meter := update.NewMeter(stdio.Err, stdio.Colour, time.Now)
	defer meter.End()
	f, err := r.fetcher(platform, meter.Show)
	if err != nil {
		return nil, err
	}
	q, err := fetch.OpenQuarantine(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	i, err := f.Registry(ctx, q, ref)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	from, err := i.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if a, err = image.Read(ctx, from, dir, image.Options{Platform: platform}); err != nil {
		return nil, err
	}
	if err := a.Close(); err != nil {
		return nil, err
	}
	if a.Image().Manifest != ref.Digest {
		return nil, &fetch.Error{Reason: fetch.ReasonDigest, Detail: fmt.Sprintf("%s holds the image %s", ref, a.Image().Manifest)}
	}
	return a, nil
}

// lookThrough reads an image and closes it: its digests are what counts.
func lookThrough(ctx context.Context, stdio *cli.IO, path, platform string) (*image.Archive, error) {
	told := time.Now()
	a, err := image.Open(ctx, path, image.Options{Platform: platform, Progress: func(done, total int64) {
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			fmt.Fprintf(stdio.Err, "%s: %d of %d MiB\n", path, done>>20, total>>20)
		}
	}})
	if err != nil {
		return nil, err
	}
	return a, a.Close()
}

func revoke(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	var f signFlags
	fs.Var(&f.keys, "key", "approver's key file; may be given again")
	f.register(fs, "revocation")
	why := fs.String("why", "", "for people: 1 to 200 characters")
	isApproval := fs.Bool("approval", false, "the digest is that of an approval, not of an image")
	platform := fs.String("platform", "", "of the image, where there are several")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	signers, err := f.signers()
	if err != nil {
		return err
	}
	if *f.add != "" {
		if len(words) != 0 {
			return cli.Usagef("--add takes nothing to revoke")
		}
		return addSignatures(stdio, f, signers)
	}
	if len(words) != 1 || *why == "" {
		return cli.Usagef("revoke takes one approval, image or digest, --why and --key")
	}
	r := approval.Revocation{Schema: approval.RevocationSchema, Why: *why, Issued: time.Now().UTC().Truncate(time.Second)}
	if r.Approval, r.Image, err = target(ctx, stdio, words[0], *isApproval, *platform); err != nil {
		return err
	}
	envelope, err := r.Sign(signers...)
	if err != nil {
		return err
	}
	out := *f.out
	if out == "" {
		out = strings.TrimSuffix(filepath.Base(words[0]), filepath.Ext(words[0])) + ".revocation"
	}
	if err := writeEnvelope(out, envelope); err != nil {
		return err
	}
	return tellSigned(stdio, f, out, envelope)
}

// target finds out what a word is that names what is revoked.
func target(ctx context.Context, stdio *cli.IO, word string, isApproval bool, platform string) (ofApproval, ofImage string, err error) {
	if approval.IsDigest(word) {
		if isApproval {
			return word, "", nil
		}
		return "", word, nil
	}
	if st, err := os.Stat(word); err == nil && st.Mode().IsRegular() && st.Size() <= approval.MaxEnvelope {
		b, err := readSmall(word)
		if err != nil {
			return "", "", err
		}
		if p, err := approval.Peek(b); err == nil && p.Approval != nil {
			return p.Digest, "", nil
		}
	}
	a, err := lookThrough(ctx, stdio, word, platform)
	if err != nil {
		return "", "", err
	}
	// The configuration: the same image in another wrapping has another manifest.
	return "", a.Image().Config, nil
}

func addSignatures(stdio *cli.IO, f signFlags, signers []crypto.Signer) error {
	envelope, err := readSmall(*f.add)
	if err != nil {
		return err
	}
	if envelope, err = approval.Cosign(envelope, signers...); err != nil {
		return err
	}
	out := *f.add
	if *f.out != "" {
		out = *f.out
	}
	if err := writeEnvelope(out, envelope); err != nil {
		return err
	}
	return tellSigned(stdio, f, out, envelope)
}

func writeEnvelope(path string, envelope []byte) error { return os.WriteFile(path, envelope, 0o644) }

func tellSigned(stdio *cli.IO, f signFlags, path string, envelope []byte) error {
	p, err := approval.Peek(envelope)
	if err != nil {
		return err
	}
	if *f.asJSON {
		return json.NewEncoder(stdio.Out).Encode(struct {
			File       string               `json:"file"`
			Digest     string               `json:"digest"`
			Keys       []string             `json:"keys"`
			Approval   *approval.Approval   `json:"approval,omitempty"`
			Revocation *approval.Revocation `json:"revocation,omitempty"`
		}{path, p.Digest, p.KeyIDs, p.Approval, p.Revocation})
	}
	if err := printSigned(stdio.Out, p); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdio.Out, "signed by %s\n%s   for `portcullis approvals add`\n", record.Plain(strings.Join(p.KeyIDs, ", "), 600), path)
	return err
}

func printSigned(w io.Writer, p *approval.Peeked) error {
	if r := p.Revocation; r != nil {
		_, err := fmt.Fprintf(w, "revocation %s\n  of   %s\n  why  %s\n", p.Digest, r.Approval+r.Image, r.Why)
		return err
	}
	return printApproval(w, p.Digest, p.Approval)
}

func printApproval(w io.Writer, digest string, a *approval.Approval) error {
	profile, err := json.Marshal(a.Profile)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "approval %s\n  %s for %s, %s to %s\n  manifest %s\n  config   %s\n  layers   %d\n  profile  %s\n",
		digest, approval.Version(a), a.Purpose, a.NotBefore.Format(time.RFC3339), a.NotAfter.Format(time.RFC3339), a.Image.Manifest, a.Image.Config, len(a.Image.Layers), profile)
	return err
}
