package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/detect"
	"portcullis/hardware/setup"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/zymbit"
	"portcullis/images/card"
	"portcullis/internal/cli"
)

// setupRun is one run of a set-up command: flags, the state, what it says.
type setupRun struct {
	stdio *cli.IO
	dir   string
	json  bool
	state *setup.State
}

func (r *setupRun) say(s string) {
	if !r.json {
		fmt.Fprintln(r.stdio.Out, s)
	}
}

// keep stores the state and reports it.
func (r *setupRun) keep() error {
	if err := r.state.Save(r.dir); err != nil {
		return err
	}
	if r.json {
		return writeJSON(r.stdio.Out, r.state)
	}
	fmt.Fprintln(r.stdio.Out, "done")
	return nil
}

// setupCommand makes a command that changes the state.
func setupCommand(name, summary, example string, do func(ctx context.Context, r *setupRun, tpm tpmFlags) error) *cli.Command {
	c := &cli.Command{Name: name, Args: "[flags] [--json]", Summary: summary, Example: example}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		r := &setupRun{stdio: stdio}
		fs := cli.NewFlags(c, stdio)
		fs.BoolVar(&r.json, "json", false, "one JSON object")
		fs.StringVar(&r.dir, "dir", setup.Dir, "where the set-up is remembered")
		tpm := addTPMFlags(fs)
		if err := noWords(c, stdio, fs, args); err != nil {
			return err
		}
		var err error
		if r.state, err = setup.Load(r.dir); err != nil {
			return err
		}
		if err := do(ctx, r, tpm); err != nil {
			return err
		}
		return r.keep()
	}
	return c
}

func rootSetupTPMCommand() *cli.Command {
	return setupCommand("root setup-tpm",
		"Prepare the TPM: check that its handles are free or ours, set the dictionary-attack parameters, make the\n"+
			"storage and attestation keys. Can be repeated. 0x81000001 is the storage key's handle and never taken for ours.",
		"portcullis root setup-tpm\nportcullis root setup-tpm --ak 0x81008002 --counter 0x01800080", setupTPM)
}

func setupTPM(ctx context.Context, r *setupRun, tpm tpmFlags) (err error) {
	c := tpm.config()
	if h, err := readHandover(card.HandoverPath); err == nil && tpm.nv.v == tpm2.DefaultCounter {
		c.NVIndex = h.NVIndex
	}
	r.state.TPM, err = setup.PrepareTPM(ctx, *tpm.device, c, time.Now(), r.say)
	return err
}

func rootSetupSoftHSMCommand() *cli.Command {
	return setupCommand("root setup-softhsm",
		"Make a PKCS#11 token in software, with random PINs and a P-256 key, to develop against. It protects nothing and\n"+
			"never holds the disk's key. Refused on a release image.",
		"portcullis root setup-softhsm --dir ./root", setupSoftHSM)
}

func setupSoftHSM(ctx context.Context, r *setupRun, _ tpmFlags) (err error) {
	if h, err := readHandover(card.HandoverPath); err == nil && h.Profile == card.ProfileRelease {
		return errors.New("this is a release image: a token in software has no place on it")
	}
	dir, err := filepath.Abs(filepath.Join(r.dir, "softhsm"))
	if err != nil {
		return err
	}
	r.state.SoftHSM, err = setup.PrepareSoftHSM(ctx, dir, time.Now(), r.say)
	return err
}

func rootSetupZymbitCommand() *cli.Command {
	return setupCommand("root setup-zymbit",
		"Prepare a Zymbit module: put this kernel's wake pin into the vendor's settings, lock and unlock a secret.\n"+
			"The vendor's packages are installed first, by hand. Cutting the tab for production mode cannot be undone and\n"+
			"is never done or asked for by this tool. Unverified on hardware.",
		"portcullis root setup-zymbit", setupZymbit)
}

func setupZymbit(ctx context.Context, r *setupRun, _ tpmFlags) (err error) {
	r.state.Zymbit, err = setup.PrepareZymbit(ctx, setup.DefaultZymbitPaths, zymbit.ExecConfig{}, time.Now(), r.say)
	return err
}

func rootFullSetupCommand() *cli.Command {
	return setupCommand("root full-setup",
		"Detect, then set up every chip that was found. Nothing irreversible: OTP and the module's production mode are\n"+
			"steps of their own.",
		"portcullis root full-setup", fullSetup)
}

func fullSetup(ctx context.Context, r *setupRun, tpm tpmFlags) error {
	d := detect.Detect(ctx, detect.Local(nil))
	found := 0
	var problems []error
	step := func(name string, do func(context.Context, *setupRun, tpmFlags) error) {
		found++
		r.say("== " + name)
		if err := do(ctx, r, tpm); err != nil {
			r.say(err.Error())
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	}
	if len(d.TPMs) > 0 || *tpm.device != tpm2.DefaultPath {
		step("TPM", setupTPM)
	}
	if d.Zymbit.Tools {
		step("Zymbit", setupZymbit)
	}
	if found == 0 {
		return &hardware.Error{Reason: hardware.ReasonAbsent, Err: errors.New("no chip was found; see portcullis root detect")}
	}
	if len(problems) == found {
		return errors.Join(problems...)
	}
	// What succeeded is remembered all the same.
	if err := r.state.Save(r.dir); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

func rootTestCommand() *cli.Command {
	c := &cli.Command{
		Name: "root test", Args: "[flags] [--json]",
		Summary: "Exercise every chip that was set up, and a Zymbit module that keeps this Pi's key, without changing what they keep.\n" +
			"Exit 0 where everything works.",
		Example: "portcullis root test",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		asJSON := fs.Bool("json", false, "one JSON object")
		dir := fs.String("dir", setup.Dir, "where the set-up is remembered")
		handover := fs.String("handover", card.HandoverPath, "what pi-init found out")
		tpm := addTPMFlags(fs)
		if err := noWords(c, stdio, fs, args); err != nil {
			return err
		}
		s, err := setup.Load(*dir)
		if err != nil {
			return err
		}
		checks := testChips(ctx, s, tpm, *handover)
		ok := len(checks) > 0
		for _, x := range checks {
			ok = ok && x.OK
		}
		if *asJSON {
			err = writeJSON(stdio.Out, struct {
				OK     bool          `json:"ok"`
				Checks []setup.Check `json:"checks"`
			}{ok, checks})
		} else {
			printChecks(stdio, checks)
		}
		if err != nil {
			return err
		}
		if !ok {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	return c
}

// keptByZymbit says that this Pi's key is kept by a module, alone or with a TPM.
func keptByZymbit(handover string) bool {
	h, err := readHandover(handover)
	return err == nil && (h.Backend == string(hardware.BackendZymbit) || h.Backend == string(hardware.BackendCombined))
}

func testChips(ctx context.Context, s *setup.State, tpm tpmFlags, handover string) []setup.Check {
	checks := []setup.Check{}
	if s.TPM != nil {
		device := s.TPM.Device
		if *tpm.device != tpm2.DefaultPath {
			device = *tpm.device
		}
		checks = append(checks, setup.TestTPM(ctx, device, s.TPM.Config(tpm.config()))...)
	}
	if s.Zymbit != nil || keptByZymbit(handover) {
		z, err := openZymbit(ctx)
		if err != nil {
			checks = append(checks, setup.Check{Name: "zymbit", Detail: err.Error()})
		} else {
			checks = append(checks, setup.TestZymbit(ctx, z)...)
			z.Close()
		}
	}
	if s.SoftHSM != nil {
		checks = append(checks, setup.TestSoftHSM(ctx, s.SoftHSM)...)
	}
	return checks
}

func printChecks(stdio *cli.IO, checks []setup.Check) {
	for _, x := range checks {
		word := "ok    "
		if !x.OK {
			word = "FAILED"
		}
		fmt.Fprintf(stdio.Out, "%s %-24s %s\n", word, x.Name, x.Detail)
	}
	if len(checks) == 0 {
		fmt.Fprintln(stdio.Out, "nothing was set up yet: portcullis root full-setup")
	}
}
