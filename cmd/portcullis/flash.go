package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"portcullis/attestserver/policy"
	"portcullis/images/card"
	"portcullis/images/flash"
	"portcullis/images/manifest"
	"portcullis/internal/cli"
	"portcullis/internal/event"
	"portcullis/verifier/approval"
)

func init() { commands = append(commands, flashCommand()) }

func flashCommand() *cli.Command {
	c := &cli.Command{
		Name: "flash", Args: "IMAGE DEVICE | --list",
		Summary: "Write the Pi's image to an SD card and read it back.",
		Example: "portcullis flash --list\n" +
			"portcullis flash out/pi.img.zst /dev/sdb --key release.key.pub --seed seed.yml\n\n" +
			"A seed holds the operator's settings:\n" +
			"  schema: portcullis/seed/v1\n" +
			"  operator_key: age1...   # who can read the recovery key that the Pi makes\n" +
			"  hostname: door\n" +
			"  uplink: dhcp\n" +
			"  config: |\n" +
			"    ...                   # portcullis.yaml; see 'portcullis config example'\n" +
			"  policy: |               # attest.policy_file: " + card.PolicyPath + "\n" +
			"    ...                   # see 'portcullis policy show'\n" +
			"  approvers: |            # see 'portcullis approvals approvers --help'\n" +
			"    ...\n" +
			"  webhooks:\n" +
			"    allow: [192.0.2.10/32]\n" +
			"    secrets: {ops: ...}   # 32 to 256 characters; secret_file: " + card.SecretPath("ops"),
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		f := flashing{stdio: stdio, system: flash.Host(), now: time.Now}
		return f.run(ctx, c, args)
	}
	return c
}

// flashing is one call of the command.
type flashing struct {
	stdio  *cli.IO
	system flash.System
	now    func() time.Time

	seedPath         string
	zymbitDir        string
	keys             stringList
	threshold        int
	force, yes, json bool
}

func (f *flashing) run(ctx context.Context, c *cli.Command, args []string) error {
	fs := cli.NewFlags(c, f.stdio)
	list := fs.Bool("list", false, "list removable disks and end")
	fs.StringVar(&f.seedPath, "seed", "", "file with the operator's settings, put on the card")
	fs.StringVar(&f.zymbitDir, "zymbit-state", "", "copy of a Zymbit module's /var/lib/zymbit, put on the card for this Pi")
	fs.Var(&f.keys, "key", "public release key that must have signed the image (may be given again)")
	fs.IntVar(&f.threshold, "threshold", 1, "signatures needed of the keys given with --key")
	fs.BoolVar(&f.force, "force", false, "also a built-in disk, or one larger than 2 TB; never one that is in use")
	fs.BoolVar(&f.yes, "yes", false, "do not ask for the device's name")
	fs.BoolVar(&f.json, "json", false, "one JSON object a line: events, or the disks of --list as one array")
	words, err := cli.Parse(c, f.stdio, fs, args)
	if err != nil {
		return err
	}
	if *list {
		if len(words) != 0 {
			return cli.Usagef("flash: --list takes no words")
		}
		return f.list()
	}
	if len(words) != 2 {
		return cli.Usagef("flash: an image and a device are needed; 'portcullis flash --list' shows disks")
	}
	err = f.flash(ctx, words[0], words[1])
	if err != nil && f.json {
		f.events().Emit("flash.failed", event.Fields{"reason": flash.Reason(err), "detail": err.Error()})
		return &cli.ExitError{Code: 1}
	}
	return err
}

func (f *flashing) list() error {
	disks, err := f.system.List()
	if err != nil {
		return err
	}
	if f.json {
		return json.NewEncoder(f.stdio.Out).Encode(disks)
	}
	if len(disks) == 0 {
		fmt.Fprintln(f.stdio.Out, "no removable disk")
		return nil
	}
	fmt.Fprintf(f.stdio.Out, "%-16s %10s  %-9s %-28s %s\n", "DEVICE", "SIZE", "TRANSPORT", "MODEL", "STATE")
	for _, d := range disks {
		state := "free"
		if d.ReadOnly {
			state = "write-protected"
		}
		if len(d.Uses) > 0 {
			state = d.Uses[0].Detail
		}
		fmt.Fprintf(f.stdio.Out, "%-16s %10s  %-9s %-28s %s\n", d.Path, flash.Bytes(d.Size), d.Transport, d.Model, state)
	}
	return nil
}

// flash refuses whatever can be refused before the device is opened for writing.
func (f *flashing) flash(ctx context.Context, image, device string) error {
	trust, err := f.trust()
	if err != nil {
		return err
	}
	img, err := flash.OpenImage(image, trust)
	if err != nil {
		return err
	}
	seed, err := f.seed()
	if err != nil {
		return err
	}
	module, err := f.zymbitState()
	if err != nil {
		return err
	}
	disk, err := f.system.Find(device)
	if err != nil {
		return err
	}
	if err := disk.Check(flash.Need(img.Map), f.force); err != nil {
		return err
	}
	f.introduce(img, disk)
	if err := f.confirm(disk); err != nil {
		return err
	}
	dev, err := flash.OpenDevice(disk)
	if err != nil {
		return err
	}
	defer dev.Close()
	return f.write(ctx, flash.Options{Image: img, Target: dev, Seed: seed, Zymbit: module}, disk)
}

func (f *flashing) trust() (*manifest.Trust, error) {
	if len(f.keys) == 0 {
		return nil, nil
	}
	t := &manifest.Trust{Threshold: f.threshold}
	for _, path := range f.keys {
		var k ed25519.PublicKey
		k, err := manifest.LoadPublicKey(path)
		if err != nil {
			return nil, err
		}
		t.ReleaseKeys = append(t.ReleaseKeys, k)
	}
	return t, nil
}

func (f *flashing) seed() ([]byte, error) {
	if f.seedPath == "" {
		return nil, nil
	}
	file, err := os.Open(f.seedPath)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, card.SeedSize+1))
	if err != nil {
		return nil, err
	}
	return seedImage(f.seedPath, b)
}

// seedImage is card.SeedImage with policy and approvers checked as well: on the Pi a policy
// with a mistake would leave the built-in one in force, which nobody may notice, and
// without approvers that can be read no verifier starts.
func seedImage(name string, b []byte) ([]byte, error) {
	image, err := card.SeedImage(name, b)
	if err != nil {
		return nil, err
	}
	s, err := card.ParseSeed(name, b)
	if err != nil {
		return nil, err
	}
	if len(s.Policy) > 0 {
		if _, err := policy.Parse(name+", policy", s.Policy); err != nil {
			return nil, err
		}
	}
	if len(s.Approvers) > 0 {
		if _, err := approval.ParseApprovers(s.Approvers); err != nil {
			return nil, fmt.Errorf("%s, approvers: %w", name, err)
		}
	}
	return image, nil
}

// zymbitState reads what the vendor's software keeps of a module.
func (f *flashing) zymbitState() ([]byte, error) {
	if f.zymbitDir == "" {
		return nil, nil
	}
	s, err := card.ReadZymbitState(f.zymbitDir)
	if err == nil && s == nil {
		err = fmt.Errorf("%s: no file is there", f.zymbitDir)
	}
	if err != nil {
		return nil, err
	}
	return card.ZymbitImage(s)
}

// introduce says what will be written, who made it, and what will be lost.
func (f *flashing) introduce(img *flash.Image, d *flash.Disk) {
	if f.json {
		f.events().Emit("flash.started", event.Fields{
			"title": img.Map.Title, "digest": img.Digest.String(), "signed": img.Known, "keys": img.KeyIDs,
			"device": d.Path, "model": d.Model, "size": d.Size, "seed": f.seedPath != "",
		})
		return
	}
	w := f.stdio.Err
	fmt.Fprintf(w, "image   %s, %s, %s of data, %s\n", img.Map.Title, flash.Bytes(img.Map.Size), flash.Bytes(img.Map.Data()), img.Digest.String()[:16])
	if img.Known {
		fmt.Fprintf(w, "signed  by a key that you gave (%s)\n", strings.Join(img.KeyIDs, ", "))
	} else {
		fmt.Fprintf(w, "signed  by %s, which proves nothing without --key: NOBODY CAN TELL WHO MADE THIS IMAGE\n", strings.Join(img.KeyIDs, ", "))
	}
	fmt.Fprintf(w, "device  %s, %s, %s\n", d.Path, flash.Bytes(d.Size), strings.TrimSpace(d.Transport+" "+d.Model))
	if f.seedPath == "" {
		fmt.Fprintln(w, "seed    none: the Pi will ask at its console before it encrypts the card")
	} else {
		fmt.Fprintf(w, "seed    %s\n", f.seedPath)
	}
}

func (f *flashing) confirm(d *flash.Disk) error {
	if f.yes {
		return nil
	}
	fmt.Fprintf(f.stdio.Err, "Everything on %s will be lost. Type %q to go on: ", d.Path, d.Name)
	line, _ := bufio.NewReader(io.LimitReader(f.stdio.In, 4096)).ReadString('\n')
	if strings.TrimSpace(line) != d.Name {
		return &flash.Error{Reason: flash.ReasonNotConfirmed, Detail: "nothing was written"}
	}
	return nil
}

func (f *flashing) events() *event.Writer { return event.NewJSON(f.stdio.Out, "flash", f.now) }

func (f *flashing) write(ctx context.Context, o flash.Options, d *flash.Disk) error {
	meter := flash.NewMeter(f.stdio.Err, isTerminal(os.Stderr), f.now)
	if f.json {
		meter = flash.NewEventMeter(f.events(), f.now)
	}
	o.Report = meter.Report
	dir, err := flash.JournalDir()
	if err == nil {
		o.Journal, err = flash.OpenJournal(dir, o.Image.Digest, d.Identity())
	}
	switch {
	case err != nil && f.json:
		f.events().Emit("flash.no-journal", event.Fields{"detail": err.Error()})
	case err != nil:
		fmt.Fprintf(f.stdio.Err, "an interrupted run cannot be resumed: %v\n", err)
	case o.Journal.Len() > 0 && f.json:
		f.events().Emit("flash.resumed", event.Fields{"ranges": o.Journal.Len()})
	case o.Journal.Len() > 0:
		fmt.Fprintf(f.stdio.Err, "resuming: %d of %d ranges were written before and are compared\n", o.Journal.Len(), len(o.Image.Map.Ranges))
	}
	defer o.Journal.Close()
	began := f.now()
	r, err := flash.Run(ctx, o)
	meter.End()
	took := f.now().Sub(began)
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted: %s holds no image now; the same command goes on where this one ended", d.Path)
	}
	if err != nil {
		return err
	}
	if f.json {
		f.events().Emit("flash.done", event.Fields{
			"written": r.Written, "kept": r.Kept, "zeroed": r.Zeroed, "verified": r.Verified, "seeded": r.Seeded, "seconds": took.Seconds(),
		})
		return nil
	}
	fmt.Fprintf(f.stdio.Out, "%s holds the image: %s written, %s kept, %s read back and compared in %s\n",
		d.Path, flash.Bytes(r.Written), flash.Bytes(r.Kept), flash.Bytes(r.Verified), took.Round(time.Second/10))
	return nil
}
