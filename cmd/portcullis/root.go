package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/combined"
	"portcullis/hardware/detect"
	"portcullis/hardware/setup"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/zymbit"
	"portcullis/images/card"
	"portcullis/internal/cli"
)

func init() { commands = append(commands, rootCommand()) }

func rootCommand() *cli.Command {
	return &cli.Command{
		Name: "root", Summary: "The Pi's root of trust: what there is, setting it up, binding the disk to it again.",
		Sub: []*cli.Command{
			rootDetectCommand(), rootSetupTPMCommand(), rootSetupSoftHSMCommand(), rootSetupZymbitCommand(), rootFullSetupCommand(),
			rootTestCommand(), rootStatusCommand(), rootRearmCommand(), rootPrepareOTPCommand(), rootWatchCommand(), rootPressCommand(),
		},
	}
}

// tpmFlags are the flags of everything that speaks to a TPM.
type tpmFlags struct {
	device           *string
	srk, ak, nv, rev *handle
}

// handle is a TPM handle or NV index as a flag.
type handle struct{ v uint32 }

func (h *handle) String() string {
	if h == nil || h.v == 0 {
		return ""
	}
	return fmt.Sprintf("%#x", h.v)
}

func (h *handle) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return fmt.Errorf("%q is no handle, for instance 0x81008001", s)
	}
	h.v = uint32(n)
	return nil
}

func addTPMFlags(fs *flag.FlagSet) tpmFlags {
	f := tpmFlags{device: fs.String("tpm", tpm2.DefaultPath, "the TPM: a device, or the socket of an emulator"),
		srk: &handle{tpm2.DefaultSRK}, ak: &handle{tpm2.DefaultAK}, nv: &handle{tpm2.DefaultCounter}, rev: &handle{}}
	fs.Var(f.srk, "srk", "handle of the storage key, shared with systemd")
	fs.Var(f.ak, "ak", "handle of the attestation key; never 0x81000001")
	fs.Var(f.nv, "counter", "NV index of the counter of accepted releases")
	fs.Var(f.rev, "revocation", "NV index of the counter of revocations (the one after --counter)")
	return f
}

func (f tpmFlags) config() tpm2.Config {
	return tpm2.Config{SRK: f.srk.v, AK: f.ak.v, NVIndex: f.nv.v, Revocation: f.rev.v}
}

// askTPM is what detection asks a chip.
func askTPM(ctx context.Context, device string) (hardware.Identity, error) {
	t, err := tpm2.Open(device, tpm2.Config{})
	if err != nil {
		return hardware.Identity{}, err
	}
	defer t.Close()
	return t.Identify(ctx)
}

func rootDetectCommand() *cli.Command {
	c := &cli.Command{
		Name: "root detect", Args: "[--json]",
		Summary: "Show the chips of this machine and what its boot protects against. Changes nothing. Exit 0 where a chip was found.",
		Example: "portcullis root detect\nportcullis root detect --json | jq .posture",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		asJSON := fs.Bool("json", false, "one JSON object")
		if err := noWords(c, stdio, fs, args); err != nil {
			return err
		}
		r := detect.Detect(ctx, detect.Local(askTPM))
		if *asJSON {
			if err := writeJSON(stdio.Out, r); err != nil {
				return err
			}
		} else {
			printDetected(stdio.Out, r)
		}
		if r.Recommended == "" {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	return c
}

func printDetected(w io.Writer, r detect.Report) {
	name := r.Board.Name
	if name == "" {
		name = "no device tree: not a Raspberry Pi, or an emulated machine"
	}
	fmt.Fprintf(w, "board    %s\n", name)
	fmt.Fprintf(w, "posture  %s: %s\n", r.Posture, r.PostureDetail)
	if r.EFI {
		fmt.Fprintln(w, "firmware UEFI: it may measure what it starts; root status says whether it did")
	}
	for _, t := range r.TPMs {
		switch {
		case t.Problem != "":
			fmt.Fprintf(w, "tpm      %s: %s\n", t.Device, t.Problem)
		case t.Identity != nil:
			fmt.Fprintf(w, "tpm      %s: %s %s, firmware %s\n", t.Device, t.Identity.Manufacturer, t.Identity.Model, t.Identity.Firmware)
		}
	}
	if z := r.Zymbit; z.Tools || z.Daemon || z.Library != "" || z.State {
		fmt.Fprintf(w, "zymbit   tools %t, zymbitd %t, library %q, wake pin %d (kernel says %d); unverified on hardware\n", z.Tools, z.Daemon, z.Library, z.WakePin, z.ComputedPin)
		for _, p := range z.Problems {
			fmt.Fprintf(w, "         %s\n", p)
		}
	}
	for _, m := range r.PKCS11 {
		labels := make([]string, 0, len(m.Tokens))
		for _, t := range m.Tokens {
			if t.Initialised {
				labels = append(labels, strconv.Quote(t.Label))
			}
		}
		fmt.Fprintf(w, "pkcs11   %s %s: %d tokens %s %s\n", m.Kind, m.Path, len(labels), strings.Join(labels, " "), m.Problem)
	}
	if r.Recommended == "" {
		fmt.Fprintln(w, "backend  none: there is no chip that could hold the disk's key")
		return
	}
	fmt.Fprintf(w, "backend  %s\n", r.Recommended)
}

func rootStatusCommand() *cli.Command {
	c := &cli.Command{
		Name: "root status", Args: "[--dir DIR] [--device PARTITION] [--json]",
		Summary: "Show what opened this Pi's disk, in which posture, and what is wrong with that. Exit 0 where there is no error.",
		Example: "portcullis root status\nportcullis root status --json | jq .warnings",
	}
	c.Run = func(_ context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		asJSON := fs.Bool("json", false, "one JSON object")
		p := setup.Paths{Handover: card.HandoverPath}
		fs.StringVar(&p.Dir, "dir", setup.Dir, "where the set-up is remembered")
		fs.StringVar(&p.Device, "device", "", "the encrypted partition (that of the running card)")
		if err := noWords(c, stdio, fs, args); err != nil {
			return err
		}
		if p.Device == "" {
			p.Device = runningCrypt()
		}
		s := setup.Gather(p)
		if *asJSON {
			if err := writeJSON(stdio.Out, s); err != nil {
				return err
			}
		} else {
			printRootStatus(stdio.Out, s)
		}
		if len(s.Errors) > 0 {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	return c
}

func printRootStatus(w io.Writer, s *setup.Status) {
	fmt.Fprintf(w, "posture  %s %s\n", s.Posture, s.PostureDetail)
	if s.UnlockedBy != "" {
		measured := "measured by " + s.Platform
		if s.Backend == string(hardware.BackendZymbit) {
			measured = "nothing was measured"
		}
		fmt.Fprintf(w, "opened   by %s; backend %s %s, %s\n", s.UnlockedBy, s.Backend, s.Chip, measured)
		fmt.Fprintf(w, "image    enrols %s\n", s.Demand)
	}
	if v := s.Volume; v != nil {
		fmt.Fprintf(w, "volume   %s, %d recovery keyslots\n", v.UUID, v.Recovery)
		for _, b := range v.Bindings {
			fmt.Fprintf(w, "bound    keyslot %s to %s, posture %s, %s, %s\n", b.Slot, b.Backend, b.Posture, b.State, b.Enrolled)
		}
	}
	if st := s.Setup; st != nil {
		if st.TPM != nil {
			fmt.Fprintf(w, "tpm      set up %s, attestation key %s…\n", st.TPM.Done.Format(time.RFC3339), st.TPM.AK[:min(16, len(st.TPM.AK))])
		}
		if st.Zymbit != nil {
			fmt.Fprintf(w, "zymbit   set up %s, wake pin %d\n", st.Zymbit.Done.Format(time.RFC3339), st.Zymbit.WakePin)
		}
		if st.SoftHSM != nil {
			fmt.Fprintf(w, "softhsm  set up %s in %s\n", st.SoftHSM.Done.Format(time.RFC3339), st.SoftHSM.Conf)
		}
	}
	for _, x := range s.Warnings {
		fmt.Fprintf(w, "warning  %s\n", x)
	}
	for _, x := range s.Errors {
		fmt.Fprintf(w, "error    %s\n", x)
	}
}

// openRoot opens a chip of this machine by the name of its backend.
func openRoot(ctx context.Context, b hardware.Backend, device string, c tpm2.Config) (hardware.Root, error) {
	switch b {
	case hardware.BackendTPM2:
		return tpm2.Open(device, c)
	case hardware.BackendZymbit:
		return openZymbit(ctx)
	case hardware.BackendCombined:
		t, err := tpm2.Open(device, c)
		if err != nil {
			return nil, err
		}
		z, err := openZymbit(ctx)
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		return combined.New(t, z), nil
	}
	return nil, cli.Usagef("backend %q is none of tpm2, zymbit, combined", b)
}

// openZymbit prefers zymbitd; where it does not run, the vendor's tools may speak to the chip.
func openZymbit(ctx context.Context) (hardware.Root, error) {
	c, err := zymbit.Dial(ctx, zymbit.Socket)
	if err == nil {
		return c, nil
	}
	e, toolErr := zymbit.NewExec(zymbit.ExecConfig{})
	if toolErr != nil {
		return nil, errors.Join(err, toolErr)
	}
	return e, nil
}

func noWords(c *cli.Command, stdio *cli.IO, fs *flag.FlagSet, args []string) error {
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("%s takes no words", c.Name)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// readHandover reads what pi-init left for the running system.
func readHandover(path string) (*card.Handover, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("this machine was not started by pi-init: %w", err)
	}
	return card.ParseHandover(b)
}
