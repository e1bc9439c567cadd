package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"portcullis/hardware/systemdtoken"
	"portcullis/hardware/tpm2"
)

// sealPCR is the register that the peer's key is bound to, as systemd-cryptenroll
// does by itself. Nothing measures into it where no UEFI starts the kernel.
const sealPCR = 7

// enrol makes a new chip with its state in the directory state, seals a passphrase
// to it in systemd's way, and returns both the passphrase and what makes the token.
func enrol(ctx context.Context, state string) (pass []byte, token func(slot int) ([]byte, error), err error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "piboot-") // a socket's path is short
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	cmd := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("swtpm (package swtpm): %w", err)
	}
	defer func() {
		cmd.Process.Signal(os.Interrupt) // it writes its state first
		cmd.Wait()
	}()
	chip, err := openChip(ctx, socket)
	if err != nil {
		return nil, nil, err
	}
	defer chip.Close()
	t, pass, err := systemdtoken.Enrol(ctx, chip, systemdtoken.Enrolment{PCRs: []int{sealPCR}, Unmeasured: true})
	if err != nil {
		return nil, nil, err
	}
	return pass, func(slot int) ([]byte, error) {
		t.Keyslots = []string{strconv.Itoa(slot)}
		return t.Encode()
	}, nil
}

func openChip(ctx context.Context, socket string) (*tpm2.TPM, error) {
	for {
		if _, err := os.Stat(socket); err == nil {
			return tpm2.Open(socket, tpm2.Config{})
		}
		select {
		case <-ctx.Done():
			return nil, errors.New("swtpm does not answer")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
