// Package tpmtest gives tests a TPM 2.0 of their own: an swtpm process with its
// state in a directory.
package tpmtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Chip is a running TPM emulator.
type Chip struct {
	Path  string // UNIX socket; one client at a time
	State string // directory with the chip's memory

	cmd *exec.Cmd
}

// Start runs a new TPM that ends with the test.
func Start(t testing.TB) *Chip {
	t.Helper()
	return StartAt(t, filepath.Join(t.TempDir(), "tpm"))
}

// StartAt runs a TPM on a state directory, made where it is missing.
func StartAt(t testing.TB, state string) *Chip {
	t.Helper()
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	// Not under the test's directory: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	c := &Chip{Path: filepath.Join(dir, "s"), State: state}
	t.Cleanup(func() {
		c.Close()
		os.RemoveAll(dir)
	})
	c.start(t)
	return c
}

func (c *Chip) start(t testing.TB) {
	t.Helper()
	c.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+c.State, "--server", "type=unixio,path="+c.Path,
		"--ctrl", "type=unixio,path="+c.Path+".ctrl", // tpm2-tss's swtpm TCTI wants it there
		"--flags", "not-need-init,startup-clear")
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		t.Fatalf("start swtpm (package swtpm): %v", err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		conn, err := net.Dial("unix", c.Path)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) || c.cmd.ProcessState != nil {
			t.Fatalf("swtpm does not answer: %v", err)
		}
	}
}

// Reboot is a power cycle: registers and sessions are lost, NV memory stays.
func (c *Chip) Reboot(t testing.TB) {
	t.Helper()
	c.Close()
	c.start(t)
}

// Close ends the process.
func (c *Chip) Close() {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	_ = c.cmd.Wait()
	c.cmd = nil
	for _, p := range []string{c.Path, c.Path + ".ctrl"} {
		_ = os.Remove(p) // swtpm removes its own when it ends well
	}
}

// TCTI is how programs on tpm2-tss reach the chip.
func (c *Chip) TCTI() string { return "swtpm:path=" + c.Path }
