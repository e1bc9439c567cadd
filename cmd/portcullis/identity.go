package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"portcullis/hardware/tpm2"
	"portcullis/images/card"
	"portcullis/images/identity"
	"portcullis/images/update"
	"portcullis/internal/cli"
	"portcullis/internal/config"
)

func init() { commands = append(commands, identityCommand()) }

// consoleDevice is where the operator looks on a Pi's first boot.
const consoleDevice = "/dev/console"

func identityCommand() *cli.Command {
	c := &cli.Command{
		Name: "identity", Args: "[--json] [--expect FILE] [--record]",
		Summary: "Show who this Pi is: the gateway key that a PC's image pins, the chip's keys, what was booted. All of it is public.\n" +
			"The chip's attestation key is made where it is missing. With --expect it is compared with what an earlier\n" +
			"'identity --json' printed and you kept: exit 1 where the volume, the chip or the gateway key is another one.",
		Example: "portcullis identity\nportcullis identity --json | jq -r .gateway_key\nportcullis identity --expect /mnt/door.json",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		flags := cli.NewFlags(c, stdio)
		asJSON := flags.Bool("json", false, "one JSON object")
		file := flags.String("config", config.DefaultPath, "configuration file")
		expect := flags.String("expect", "", "a record of this Pi that was kept elsewhere")
		record := flags.Bool("record", false, "write the record to the card and one line to the console, as portcullis-identity.service does")
		if words, err := cli.Parse(c, stdio, flags, args); err != nil {
			return err
		} else if len(words) != 0 {
			return cli.Usagef("identity takes no words")
		}
		r, err := collectIdentity(ctx, *file)
		if err != nil {
			return err
		}
		if *record {
			return recordIdentity(r)
		}
		if *expect != "" {
			return expectIdentity(stdio, r, *expect, *asJSON)
		}
		if *asJSON {
			b, err := r.Encode()
			if err == nil {
				_, err = stdio.Out.Write(b)
			}
			return err
		}
		printIdentity(stdio.Out, r)
		return nil
	}
	return c
}

func collectIdentity(ctx context.Context, file string) (*identity.Record, error) {
	s := identity.Sources{Before: recordOnCard()}
	c, err := config.Load(file)
	switch {
	case err == nil:
		s.KeyFile = c.Attest.KeyFile
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if b, err := os.ReadFile(card.HandoverPath); err == nil {
		if s.Handover, err = card.ParseHandover(b); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s.TPM = func(ctx context.Context) (*tpm2.Enrolment, error) {
		t, err := tpm2.Open(tpm2.DefaultPath, tpm2.Config{NVIndex: s.Handover.NVIndex})
		if err != nil {
			return nil, err
		}
		e, err := t.Enrol(ctx, "")
		return e, errors.Join(err, t.Close())
	}
	return identity.Collect(ctx, s)
}

// recordOnCard is what the card says already, nil where this is no Pi.
func recordOnCard() (b []byte) {
	if running, err := update.OpenRunning(); err == nil {
		update.WithConf(running, func(c *card.Conf) error { b, err = c.Enrol(); return err })
	}
	return b
}

// recordIdentity writes the record where it differs from the one on the card.
func recordIdentity(r *identity.Record) error {
	b, err := r.Encode()
	if err != nil {
		return err
	}
	console, err := os.OpenFile(consoleDevice, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(console, "%s\r\n", r.Line())
	if err := errors.Join(err, console.Close()); err != nil {
		return err
	}
	running, err := update.OpenRunning()
	if err != nil {
		return err
	}
	// No lock: nobody else writes this file, and a commit may take minutes.
	return update.WithConf(running, func(c *card.Conf) error { return c.WriteEnrol(b) })
}

// expectIdentity compares r with a record in a file; a difference is exit status 1.
func expectIdentity(stdio *cli.IO, r *identity.Record, file string, asJSON bool) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, identity.MaxRecord+1))
	if err != nil {
		return err
	}
	kept, err := identity.Parse(b)
	if err != nil {
		return err
	}
	d := r.Differences(kept)
	if asJSON {
		err = writeJSON(stdio.Out, map[string]any{"same": len(d) == 0, "differences": append([]identity.Difference{}, d...)})
	} else {
		for _, one := range d {
			fmt.Fprintln(stdio.Out, one)
		}
		if len(d) == 0 {
			fmt.Fprintln(stdio.Out, "the same Pi, chip and volume")
		}
	}
	if err == nil && len(d) > 0 {
		err = &cli.ExitError{Code: 1}
	}
	return err
}

func printIdentity(w io.Writer, r *identity.Record) {
	key := "none: attestd has not started yet"
	if r.GatewayKey != nil {
		key = base64.StdEncoding.EncodeToString(r.GatewayKey)
	}
	fmt.Fprintf(w, "gateway  %s\n", key)
	if b := r.Booted; b != nil {
		fmt.Fprintf(w, "booted   release %d of %s (%s) in slot %s, posture %s\n", b.Sequence, b.Model, b.Profile, b.Slot, b.Posture)
	}
	if b := r.Booted; b != nil && b.Volume != "" {
		expected := "as first boot wrote it down"
		switch {
		case r.VolumeChanged():
			expected = fmt.Sprintf("NOT the one that first boot wrote down: %s, register 15 %s", r.Enrolled.Volume, r.Enrolled.VolumePCR)
		case r.Enrolled == nil || r.Enrolled.VolumePCR == "":
			expected = "of which first boot wrote nothing down"
		}
		fmt.Fprintf(w, "volume   %s, register 15 %s, %s\n", b.Volume, b.VolumePCR, expected)
		if b.ReEnrolled {
			fmt.Fprintln(w, "         RE-ENROLLED: this chip had kept the key of another card before. If you did not write the card anew, somebody did")
		}
	}
	switch {
	case r.Chip != nil:
		cert := "with the maker's certificate"
		if !r.Chip.HasCert {
			cert = "without a certificate"
		}
		fmt.Fprintf(w, "chip     %s endorsement key %s; attestation key %s\n", r.Chip.EKKind, cert, base64.StdEncoding.EncodeToString(r.Chip.AK))
	case r.ChipProblem != "":
		fmt.Fprintf(w, "chip     %s\n", r.ChipProblem)
	default:
		fmt.Fprintln(w, "chip     none")
	}
}
