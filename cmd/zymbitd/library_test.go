package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/zymbit"
)

// stub builds a library with the vendor's interface that behaves as the header
// describes: buffers from malloc, negative errno codes.
func stub(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "libzk_app_utils.so")
	c := exec.Command("gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", out, filepath.Join("testdata", "zkstub.c"))
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("gcc (package gcc and libc6-dev): %v\n%s", err, b)
	}
	return out
}

func TestLibraryCallByCall(t *testing.T) {
	t.Setenv("ZKSTUB_STATE", t.TempDir())
	l, err := load(stub(t))
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Random(32)
	if err != nil || len(a) != 32 {
		t.Fatalf("%x, %v", a, err)
	}
	secret := []byte("a secret of thirty-two bytes ...")
	locked, err := l.Lock(secret)
	if err != nil || bytes.Contains(locked, secret) {
		t.Fatalf("%x, %v", locked, err)
	}
	if back, err := l.Unlock(locked); err != nil || !bytes.Equal(back, secret) {
		t.Fatalf("%q, %v", back, err)
	}
	locked[0] ^= 1
	if _, err := l.Unlock(locked); err == nil || !strings.Contains(err.Error(), "zkUnlockDataB2B") {
		t.Errorf("an edited blob: %v", err)
	}
	for name, ask := range map[string]func() (string, error){"ZK-STUB": l.Model, "0123456789": l.Serial, "01.00.00": l.Firmware} {
		if s, err := ask(); err != nil || s != name {
			t.Errorf("%q, %v instead of %s", s, err, name)
		}
	}
	if sig, err := l.SignDigest([32]byte{1, 2, 3}, 0); err != nil || len(sig) != 64 || sig[0] != 1 {
		t.Errorf("%x, %v", sig, err)
	}
	if _, err := l.SignDigest([32]byte{}, 9); err == nil {
		t.Error("a slot that does not exist signs")
	}
	if p, err := l.PublicKey(0); err != nil || len(p) != 64 {
		t.Errorf("%x, %v", p, err)
	}
	if hit, err := l.WaitPerimeter(time.Millisecond); hit || err != nil {
		t.Errorf("quiet perimeter: %v, %v", hit, err)
	}
	if err := os.WriteFile(filepath.Join(os.Getenv("ZKSTUB_STATE"), "breach"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if hit, err := l.WaitPerimeter(time.Millisecond); !hit || err != nil {
		t.Errorf("breached perimeter: %v, %v", hit, err)
	}
	if times, err := l.Perimeter(); err != nil || len(times) != 2 || times[0] != 0 || times[1] != 1700000000 {
		t.Errorf("%v, %v", times, err)
	}
	if err := errors.Join(l.ClearPerimeter(), l.LEDOn(), l.LEDOff(), l.LEDFlash(time.Second, time.Second, 3), l.Close()); err != nil {
		t.Error(err)
	}
}

func TestLibraryThatIsNone(t *testing.T) {
	if _, err := load(filepath.Join(t.TempDir(), "libzk_app_utils.so")); err == nil {
		t.Error("a file that is not there is a library")
	}
	if _, err := load("libc.so.6"); err == nil || !strings.Contains(err.Error(), "zkOpen") {
		t.Errorf("a library without the calls: %v", err)
	}
}

func TestDaemonServesASealedSecretAndBreaches(t *testing.T) {
	state := t.TempDir()
	t.Setenv("ZKSTUB_STATE", state)
	bin := filepath.Join(t.TempDir(), "zymbitd")
	if b, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	socket := filepath.Join(t.TempDir(), "z.sock")
	d := exec.Command(bin, "-library", stub(t), "-socket", socket)
	d.Env = append(os.Environ(), "ZKSTUB_STATE="+state)
	logs, err := d.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Process.Kill(); _ = d.Wait() }()
	waitFor(t, logs, "zymbitd listens")
	c, err := zymbit.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	id, err := c.Identify(t.Context())
	if err != nil || id.Model != "ZK-STUB" || !id.UnverifiedOnHardware {
		t.Fatalf("%+v, %v", id, err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	blob, err := c.Seal(t.Context(), "label", secret)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := c.Unseal(t.Context(), "label", blob); err != nil || !bytes.Equal(back, secret) {
		t.Fatalf("%x, %v", back, err)
	}
	if _, err := c.Unseal(t.Context(), "other", blob); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
		t.Errorf("another label: %v", err)
	}
	// The stub's signature is made up: the daemon must not let it out.
	if _, err := c.Sign(t.Context(), sha256.Sum256(nil)); hardware.ReasonOf(err) != hardware.ReasonFailed {
		t.Errorf("a signature that does not verify: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	events, err := c.Tampers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "breach"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e, ok := <-events; !ok || e.Source != "perimeter-1" {
		t.Errorf("%+v, %v", e, ok)
	}
}

// waitFor reads until a line has text in it and then lets the rest run through.
func waitFor(t *testing.T, r io.Reader, text string) {
	t.Helper()
	var seen []byte
	buf := make([]byte, 512)
	for !bytes.Contains(seen, []byte(text)) {
		n, err := r.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil {
			t.Fatalf("%v before %q:\n%s", err, text, seen)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
}
