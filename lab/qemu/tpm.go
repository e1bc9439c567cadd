package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// TPM is a running swtpm. Its state outlives it in the directory it was given.
type TPM struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func tpmSocket(dir string) string { return filepath.Join(dir, "swtpm.sock") }

func tpmArgs(dir string) []string {
	return []string{
		"-chardev", "socket,id=tpm0,path=" + Escape(tpmSocket(dir)),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-crb,tpmdev=tpm0",
	}
}

// startTPM runs the PC's TPM with its state in dir/tpm, which a new machine finds empty.
func startTPM(ctx context.Context, dir string, start func(*exec.Cmd) error) (*TPM, error) {
	return StartTPM(ctx, filepath.Join(dir, "tpm"), tpmSocket(dir), start)
}

// StartTPM powers a TPM on: swtpm with its state in the directory state, which is
// made where it is missing, and its control socket at socket for QEMU's emulator
// backend. start starts the prepared command.
func StartTPM(ctx context.Context, state, socket string, start func(*exec.Cmd) error) (*TPM, error) {
	prog, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, errors.New("qemu: swtpm not found; install the package swtpm")
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("qemu: TPM state: %w", err)
	}
	log := strings.TrimSuffix(socket, ".sock") + ".log"
	os.Remove(socket)
	cmd := exec.Command(prog, "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--ctrl", "type=unixio,path="+socket, "--log", "level=1,file="+log)
	cmd.SysProcAttr = OwnGroup()
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("qemu: starting swtpm: %w", err)
	}
	t := &TPM{cmd: cmd, done: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(t.done)
	}()
	// swtpm tells nobody that it listens; its socket file appearing does.
	for !exists(socket) {
		select {
		case <-t.done:
			return nil, fmt.Errorf("qemu: swtpm ended at once: %s", tail(log))
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return t, nil
}

// PID is swtpm's process.
func (t *TPM) PID() int { return t.cmd.Process.Pid }

// Stop takes the TPM's power away; a nil TPM has none.
func (t *TPM) Stop() {
	if t == nil {
		return
	}
	t.cmd.Process.Kill()
	<-t.done
}

// OwnGroup keeps a terminal's Ctrl-C away from a child: the lab ends its
// children itself, in order.
func OwnGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
