package zymbit

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/internal/clock"
)

// fakeTools writes shell scripts with the vendor's command line contract: a file to lock
// or unlock, the result on stdout. unlock is the body of the unlock tool, in which
// $1 is the file; "GOOD" stands for one that works.
func fakeTools(t *testing.T, unlock string) ExecConfig {
	t.Helper()
	dir := t.TempDir()
	good := `test "$(head -c 4 "$1")" = LOCK || { echo "not bound" >&2; exit 1; }
tail -c +5 "$1"`
	tool := func(name, body string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("#!/bin/sh\nD="+dir+"\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	return ExecConfig{
		Unlock:  tool("zkunlockifs", strings.ReplaceAll(unlock, "GOOD", good)),
		Lock:    tool("zklockifs", "exit 1"),
		Random:  tool("zkgrifs", `head -c "$1" /dev/urandom`),
		Timeout: 5 * time.Second, Attempts: 3, Pause: time.Millisecond,
	}
}

// plainBlob is a blob of a payload that the fake tools "locked".
func plainBlob(t *testing.T, label string, secret []byte) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(Blob{Version: Version, Locked: append([]byte("LOCK"), payload(label, secret)...)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var secret32 = bytes.Repeat([]byte{0x5a, 1, 2, 3}, 8)

func TestUnlockToolContract(t *testing.T) {
	for name, c := range map[string]struct {
		unlock string
		reason hardware.Reason // empty: it opens
	}{
		"success":                   {"GOOD", ""},
		"second attempt":            {`if test -e $D/tried; then GOOD; else touch $D/tried; exit 1; fi`, ""},
		"partial write, then whole": {`if test -e $D/tried; then GOOD; else touch $D/tried; tail -c +5 "$1" | head -c 20; fi`, ""},
		"wrong binding":             {`echo "binding mismatch" >&2; exit 3`, ReasonRefused},
		"timeout":                   {`sleep 60`, hardware.ReasonBusy},
		"child outlives":            {`sleep 60 & sleep 60`, hardware.ReasonBusy},
		"garbage":                   {`head -c 60 /dev/urandom`, ReasonOutput},
		"nothing":                   {`true`, ReasonOutput},
		"partial write":             {`tail -c +5 "$1" | head -c 50`, ReasonOutput},
		"one byte too many":         {`tail -c +5 "$1"; printf x`, ReasonOutput},
		"endless":                   {`cat /dev/zero`, ReasonOutput},
		"whole, then failure":       {`tail -c +5 "$1"; exit 1`, ReasonRefused},
		"killed":                    {`kill -9 $$`, ReasonRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c0 := fakeTools(t, c.unlock)
			if c.reason == hardware.ReasonBusy {
				c0.Timeout, c0.Attempts = 200*time.Millisecond, 2
			}
			e, err := NewExec(c0)
			if err != nil {
				t.Fatal(err)
			}
			got, err := e.Unseal(t.Context(), "volume", plainBlob(t, "volume", secret32))
			switch {
			case c.reason == "" && (err != nil || !bytes.Equal(got, secret32)):
				t.Errorf("%x, %v", got, err)
			case c.reason != "" && (err == nil || hardware.ReasonOf(err) != c.reason):
				t.Errorf("%x, %v instead of %s", got, err, c.reason)
			case err != nil && strings.Contains(err.Error(), string(secret32)):
				t.Error("the error holds the secret")
			}
		})
	}
}

func TestSealUnsealThroughTools(t *testing.T) {
	c := fakeTools(t, "GOOD")
	// A lock tool that hides what it locks: every byte is turned.
	hide := "#!/bin/sh\nprintf LOCK; tr '\\000-\\377' '\\200-\\377\\000-\\177' < \"$1\"\n"
	show := "#!/bin/sh\ntail -c +5 \"$1\" | tr '\\000-\\377' '\\200-\\377\\000-\\177'\n"
	for p, body := range map[string]string{c.Lock: hide, c.Unlock: show} {
		if err := os.WriteFile(p, []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	e, err := NewExec(c)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := e.Seal(t.Context(), "volume", secret32)
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Unseal(t.Context(), "volume", blob)
	if err != nil || !bytes.Equal(got, secret32) {
		t.Errorf("%x, %v", got, err)
	}
	if _, err := e.Unseal(t.Context(), "other", blob); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
		t.Errorf("another label: %v", err)
	}
	if b, err := e.Random(t.Context(), 64); err != nil || len(b) != 64 {
		t.Errorf("%x, %v", b, err)
	}
}

func TestSealRefusesALockThatDoesNotLock(t *testing.T) {
	c := fakeTools(t, "GOOD")
	for name, body := range map[string]string{
		"prints the secret":    `printf LOCK; cat "$1"`,
		"prints nothing":       `true`,
		"does not unlock":      `printf XXXX; head -c 80 /dev/urandom`,
		"unlocks to something": `printf LOCK; head -c 37 /dev/zero; printf '\001A'`,
	} {
		if err := os.WriteFile(c.Lock, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		e, err := NewExec(c)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := e.Seal(t.Context(), "volume", secret32); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func TestSecretIsInNoArgumentAndNoFile(t *testing.T) {
	c := fakeTools(t, "GOOD")
	seen := filepath.Join(t.TempDir(), "seen")
	body := "#!/bin/sh\n(tr '\\000' ' ' < /proc/$$/cmdline; tr '\\000' ' ' < /proc/$$/environ; readlink \"$1\") > " + seen + "\ncat \"$1\" > /dev/null; exit 1\n"
	if err := os.WriteFile(c.Lock, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := NewExec(c)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("SECRETSECRETSECRETSECRETSECRET!!")
	if _, err := e.Seal(t.Context(), "volume", secret); err == nil {
		t.Fatal("sealed by a tool that fails")
	}
	b, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("SECRET")) || !bytes.Contains(b, []byte("memfd")) {
		t.Errorf("the tool was started with\n%s", b)
	}
}

func TestExecWithoutTools(t *testing.T) {
	if _, err := NewExec(ExecConfig{Unlock: filepath.Join(t.TempDir(), "none")}); hardware.ReasonOf(err) != hardware.ReasonAbsent {
		t.Errorf("%v", err)
	}
	c := fakeTools(t, "GOOD")
	e, err := NewExec(c)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{"no JSON": "x", "version": `{"version":2,"locked":"AA=="}`, "empty": `{"version":1,"locked":""}`,
		"unknown key": `{"version":1,"locked":"AA==","more":1}`, "too long": `{"version":1,"locked":"` + strings.Repeat("AAAA", MaxLocked) + `"}`} {
		if _, err := e.Unseal(t.Context(), "l", json.RawMessage(b)); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// countingClock counts waits and ends them at once.
type countingClock struct {
	clock.Real
	waits atomic.Int32
}

func (c *countingClock) After(time.Duration) <-chan time.Time {
	c.waits.Add(1)
	return time.After(0)
}

func TestCancelEndsRetries(t *testing.T) {
	c := fakeTools(t, "exit 1")
	clk := &countingClock{}
	c.Clock, c.Attempts = clk, 10
	e, err := NewExec(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Unseal(t.Context(), "l", plainBlob(t, "l", secret32)); hardware.ReasonOf(err) != ReasonRefused || clk.waits.Load() != 9 {
		t.Errorf("%v after %d pauses", err, clk.waits.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Unseal(ctx, "l", plainBlob(t, "l", secret32)); err == nil {
		t.Error("ran after its context ended")
	}
	if clk.waits.Load() != 9 {
		t.Errorf("%d pauses", clk.waits.Load())
	}
}

func FuzzBlob(f *testing.F) {
	f.Add([]byte(`{"version":1,"locked":"AAAA"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseBlob(b); err == nil && (len(v.Locked) < 1 || len(v.Locked) > MaxLocked) {
			t.Errorf("%+v", v)
		}
	})
}

func TestTimeoutEndsTheToolsChildrenToo(t *testing.T) {
	c := fakeTools(t, `sleep 600 & echo $! > $D/child.new; mv $D/child.new $D/child; wait`)
	c.Timeout, c.Attempts = 3*time.Second, 1
	e, err := NewExec(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Unseal(t.Context(), "l", plainBlob(t, "l", secret32)); hardware.ReasonOf(err) != hardware.ReasonBusy {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(c.Unlock), "child"))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		// Gone, or dead and not yet collected by the init of this machine.
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the child lives on: %s", stat)
		}
	}
}
