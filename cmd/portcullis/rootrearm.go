package main

import (
	"bufio"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/hardware"
	"portcullis/hardware/detect"
	"portcullis/hardware/otp"
	"portcullis/hardware/rearm"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/internal/cli"
)

func rootRearmCommand() *cli.Command {
	c := &cli.Command{
		Name: "root rearm", Args: "[--backend B [--downgrade]] [flags] [--json]",
		Summary: "Bind this Pi's disk to the chip that is here now, after a boot with the recovery key. Asks for the recovery key\n" +
			"on the terminal, without echo. The old chip's keyslot is killed at the end. After an interruption call it again.",
		Example: "portcullis root rearm\nportcullis root rearm --backend combined",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		asJSON := fs.Bool("json", false, "one JSON object")
		backend := fs.String("backend", "", "tpm2, zymbit or combined (what the image demands, else what the volume is bound to)")
		downgrade := fs.Bool("downgrade", false, "allow one chip for a volume that was bound to two together")
		device := fs.String("device", "", "the encrypted partition (that of the running card)")
		bootNode := fs.String("boot", "", "the boot partition with policy.json (that of the running slot)")
		handover := fs.String("handover", card.HandoverPath, "what pi-init found out")
		tpm := addTPMFlags(fs)
		if err := noWords(c, stdio, fs, args); err != nil {
			return err
		}
		h, err := readHandover(*handover)
		if err != nil {
			return err
		}
		o, closeAll, err := rearmOptions(ctx, h, *device, *bootNode, *backend, tpm)
		if err != nil {
			return err
		}
		defer closeAll()
		o.Downgrade = *downgrade
		if o.Recovery, err = askRecoveryKey(stdio); err != nil {
			return err
		}
		defer o.Recovery.Wipe()
		o.Progress = func(s string) { fmt.Fprintln(stdio.Err, s) }
		r, err := rearm.Run(ctx, o)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(stdio.Out, r)
		}
		fmt.Fprintf(stdio.Out, "keyslot %d opens with this %s now; %d older ones were killed. The next boot needs no recovery key.\n", r.Slot, o.Backend, len(r.Removed))
		if r.Revoked {
			fmt.Fprintln(stdio.Out, "Older copies of this card, and other cards of this chip, do not open any more without theirs.")
		} else {
			fmt.Fprintf(stdio.Out, "This %s takes nothing back: a copy of the card from before still opens with it.\n", o.Backend)
		}
		return nil
	}
	return c
}

// rearmOptions finds and opens everything but the recovery key.
func rearmOptions(ctx context.Context, h *card.Handover, device, bootNode, backend string, tpm tpmFlags) (rearm.Options, func(), error) {
	o := rearm.Options{Backend: hardware.Backend(backend), Platform: h.Platform, Now: time.Now()}
	if device == "" || bootNode == "" {
		n, err := rearm.Locate(h.Slot)
		if err != nil {
			return o, nil, err
		}
		if device == "" {
			device = n.Crypt
		}
		if bootNode == "" {
			bootNode = n.Boot
		}
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return o, nil, err
	}
	o.Device = f
	root, err := rearmRoot(ctx, h, &o, bootNode, tpm)
	if err != nil {
		return o, nil, errors.Join(err, f.Close())
	}
	o.Root = root
	return o, func() { f.Close(); root.Close() }, nil
}

// rearmRoot fills the rest of o and opens the chips.
func rearmRoot(ctx context.Context, h *card.Handover, o *rearm.Options, bootNode string, tpm tpmFlags) (root hardware.Root, err error) {
	if o.Size, err = o.Device.(io.Seeker).Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	bound, err := rearm.Bound(o.Device, o.Size)
	if err != nil {
		return nil, err
	}
	if o.Backend == "" {
		o.Backend = rearmBackend(h, bound)
	}
	if d := h.Info().Demand(); d != card.RootAuto && o.Backend != hardware.Backend(d) && o.Backend != hardware.BackendCombined {
		return nil, fmt.Errorf("%s: the image that runs demands %s, and would not open a volume that is bound to %s", rearm.ReasonDowngrade, d, o.Backend)
	}
	if o.Posture, err = hardware.ParsePosture(h.Posture); err != nil {
		return nil, err
	}
	if o.Posture == hardware.PostureNone {
		// That boot found no chip and looked no further; what its loader checks is the same.
		o.Posture, _ = detect.Posture(os.DirFS(detect.DeviceTree))
	}
	config, err := sealConfig(h, bootNode, tpm)
	if err != nil {
		return nil, err
	}
	return openRoot(ctx, o.Backend, *tpm.device, config)
}

// rearmBackend is the backend where the command line names none: what the image
// demands, else what the volume is bound to, else what this boot found.
func rearmBackend(h *card.Handover, bound []hardware.Backend) hardware.Backend {
	if d := h.Info().Demand(); d != card.RootAuto {
		return hardware.Backend(d)
	}
	if slices.Contains(bound, hardware.BackendCombined) {
		return hardware.BackendCombined
	}
	for _, b := range append(bound, hardware.Backend(h.Backend)) {
		if b != "" && b != hardware.BackendFake {
			return b
		}
	}
	return hardware.BackendTPM2
}

// sealConfig is the policy of the release that runs.
func sealConfig(h *card.Handover, bootNode string, tpm tpmFlags) (tpm2.Config, error) {
	c := tpm.config()
	if tpm.nv.v == tpm2.DefaultCounter {
		c.NVIndex = h.NVIndex
	}
	var err error
	if c.PolicyKey, err = h.Info().Policy(); err != nil {
		return c, err
	}
	if c.Platform, err = tpmpolicy.ParsePlatform(h.Platform); err != nil {
		return c, err
	}
	c.Policy, err = rearm.ReadPolicy(bootNode)
	return c, err
}

// runningCrypt is the encrypted partition of the running card, or nothing.
func runningCrypt() string {
	n, err := rearm.Locate(card.SlotA)
	if err != nil {
		return ""
	}
	return n.Crypt
}

// askRecoveryKey reads one line from the input, with the echo off where that is a terminal.
func askRecoveryKey(stdio *cli.IO) (*luks2.RecoveryKey, error) {
	fmt.Fprint(stdio.Err, "recovery key: ")
	line, err := readHidden(stdio.In)
	defer clear(line)
	fmt.Fprintln(stdio.Err)
	if err != nil {
		return nil, fmt.Errorf("no recovery key: %w", err)
	}
	return luks2.ParseRecoveryKey(line)
}

// maxTyped caps a typed line, in bytes.
const maxTyped = 512

func readHidden(in io.Reader) ([]byte, error) {
	if f, ok := in.(*os.File); ok {
		fd := int(f.Fd())
		if old, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			quiet := *old
			quiet.Lflag &^= unix.ECHO | unix.ECHONL
			if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &quiet); err != nil {
				return nil, err
			}
			defer unix.IoctlSetTermios(fd, unix.TCSETS, old)
		}
	}
	line, one := make([]byte, 0, maxTyped), make([]byte, 1)
	for {
		n, err := in.Read(one)
		switch {
		case n == 1 && one[0] == '\n':
			return line, nil
		case n == 1 && len(line) == maxTyped:
			return line, errors.New("the line is too long")
		case n == 1:
			line = append(line, one[0])
		case errors.Is(err, io.EOF) && len(line) > 0:
			return line, nil
		case err != nil:
			return line, err
		}
	}
}

func rootPrepareOTPCommand() *cli.Command {
	c := &cli.Command{
		Name: "root prepare-otp", Args: "--key BOOTKEY.pub --model pi4|pi5 --out DIR [--json]",
		Summary: "Write the files with which Raspberry Pi's own tools switch a board to signed boot and burn the key's hash into\n" +
			"its OTP. This tool burns nothing. What the files do on a board can never be undone: a typed confirmation is asked.",
		Example: "portcullis root prepare-otp --key release.boot.pub --model pi4 --out ./otp",
	}
	c.Run = func(_ context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		asJSON := fs.Bool("json", false, "one JSON object")
		keyFile := fs.String("key", "", "public boot key of image keygen (PEM, RSA-2048)")
		model := fs.String("model", "", "pi4 or pi5")
		out := fs.String("out", "", "directory for the files; it must not exist")
		if err := noWords(c, stdio, fs, args); err != nil {
			return err
		}
		if *keyFile == "" || *model == "" || *out == "" {
			return cli.Usagef("root prepare-otp needs --key, --model and --out")
		}
		b, err := os.ReadFile(*keyFile)
		if err != nil {
			return err
		}
		key, err := otp.ParseKey(b)
		if err != nil {
			return fmt.Errorf("%s: %w", *keyFile, err)
		}
		files, err := otp.Prepare(key, *model)
		if err != nil {
			return err
		}
		if err := confirmOTP(stdio, key); err != nil {
			return err
		}
		names, err := writeFiles(*out, files)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(stdio.Out, map[string]any{"fingerprint": otp.Fingerprint(key), "model": *model, "files": names})
		}
		fmt.Fprintf(stdio.Out, "%d files in %s; nothing was burnt. Read %s first.\n", len(names), *out, otp.FileReadme)
		return nil
	}
	return c
}

func confirmOTP(stdio *cli.IO, key *rsa.PublicKey) error {
	fmt.Fprintf(stdio.Err, "Key fingerprint: %s\n"+
		"On a board where these files are used, no other key will ever boot anything, and nobody can undo that: not you,\n"+
		"not Raspberry Pi. If the private key is lost the board is scrap.\nTo go on type: %s\n> ", otp.Fingerprint(key), otp.Confirmation(key))
	line, err := bufio.NewReader(io.LimitReader(stdio.In, maxTyped)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != otp.Confirmation(key) {
		return errors.New("not confirmed: nothing was written")
	}
	return nil
}

// writeFiles writes files into a new directory and returns their names, sorted.
func writeFiles(dir string, files map[string][]byte) ([]string, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(p, files[n], 0o644); err != nil {
			return nil, err
		}
	}
	return names, nil
}
