// Package tpmtest gives tests a TPM 2.0 of their own: an swtpm process with its
// state in a directory.
package tpmtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
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
	var said bytes.Buffer
	c.cmd.Stderr = &said
	if err := c.cmd.Start(); err != nil {
		t.Fatalf("start swtpm (package swtpm): %v", err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		conn, err := net.Dial("unix", c.Path)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			c.Close() // and with it the last of what it says
			t.Fatalf("swtpm does not answer: %v; %s", err, said.Bytes())
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

// Dial returns a transport that connects for every command, so that others may use
// the chip in between.
func (c *Chip) Dial() transport.TPMCloser { return link{c} }

type link struct{ *Chip }

// Close does nothing: no connection is held.
func (link) Close() error { return nil }

// Send implements transport.TPM.
func (l link) Send(command []byte) ([]byte, error) {
	c, err := net.Dial("unix", l.Path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	if _, err := io.ReadFull(c, answer[:10]); err != nil {
		return nil, err
	}
	n := min(int(binary.BigEndian.Uint32(answer[2:])), len(answer))
	_, err = io.ReadFull(c, answer[10:max(n, 10)])
	return answer[:n], err
}
