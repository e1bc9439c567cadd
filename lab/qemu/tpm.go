package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// tpm is a running swtpm.
type tpm struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func tpmSocket(dir string) string { return filepath.Join(dir, "swtpm.sock") }

func tpmArgs(dir string) []string {
	return []string{
		"-chardev", "socket,id=tpm0,path=" + escape(tpmSocket(dir)),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-crb,tpmdev=tpm0",
	}
}

// startTPM runs swtpm with its state in dir/tpm, which a new machine finds empty.
func startTPM(ctx context.Context, dir string, start func(*exec.Cmd) error) (*tpm, error) {
	prog, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, errors.New("qemu: swtpm not found; install the package swtpm")
	}
	state := filepath.Join(dir, "tpm")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("qemu: TPM state: %w", err)
	}
	os.Remove(tpmSocket(dir))
	cmd := exec.Command(prog, "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--ctrl", "type=unixio,path="+tpmSocket(dir), "--log", "level=1,file="+filepath.Join(dir, "swtpm.log"))
	cmd.SysProcAttr = ownGroup()
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("qemu: starting swtpm: %w", err)
	}
	t := &tpm{cmd: cmd, done: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(t.done)
	}()
	// swtpm tells nobody that it listens; its socket file appearing does.
	for !exists(tpmSocket(dir)) {
		select {
		case <-t.done:
			return nil, fmt.Errorf("qemu: swtpm ended at once: %s", tail(filepath.Join(dir, "swtpm.log")))
		case <-ctx.Done():
			t.stop()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return t, nil
}

// stop ends swtpm; a nil tpm has nothing to stop.
func (t *tpm) stop() {
	if t == nil {
		return
	}
	t.cmd.Process.Kill()
	<-t.done
}

// ownGroup keeps a terminal's Ctrl-C away from a child: the lab ends its
// children itself, in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
