package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pty makes a pseudo terminal: the side of the person and that of the console.
func pty(t *testing.T) (person, console *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	conn, err := person.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	console, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { console.Close() })
	return person, console
}

// seen reads what a person sees until it contains text.
func seen(t *testing.T, person *os.File, text string) string {
	t.Helper()
	var all []byte
	person.SetReadDeadline(time.Now().Add(10 * time.Second))
	for !bytes.Contains(all, []byte(text)) {
		b := make([]byte, 256)
		n, err := person.Read(b)
		if err != nil {
			t.Fatalf("%q instead of %q: %v", all, text, err)
		}
		all = append(all, b[:n]...)
	}
	return string(all)
}

func TestAskOnEveryConsole(t *testing.T) {
	screen, tty1 := pty(t)
	serial, ttyS1 := pty(t)
	terminals := &Terminals{ttys: []*os.File{tty1, ttyS1}}
	for name, who := range map[string]*os.File{"screen": screen, "serial": serial} {
		for _, secret := range []bool{true, false} {
			answer := make(chan string, 1)
			go func() {
				line, err := terminals.Ask(t.Context(), "say it (%d s left): ", 20*time.Second, secret)
				answer <- fmt.Sprint(string(line), err)
			}()
			for _, f := range []*os.File{screen, serial} {
				seen(t, f, "say it (20 s left): ")
			}
			// A person corrects a letter: the line is the terminal's to edit.
			if _, err := who.WriteString("opem\x7fn sesame\r"); err != nil {
				t.Fatal(err)
			}
			if got := <-answer; got != "open sesame<nil>" {
				t.Errorf("%s: %q", name, got)
			}
			if got := seen(t, who, "\n"); strings.Contains(got, "sesame") == secret {
				t.Errorf("%s, secret=%t: shows %q", name, secret, got)
			}
		}
	}
}

func TestAskEndsWithoutAnAnswer(t *testing.T) {
	_, console := pty(t)
	terminals := &Terminals{ttys: []*os.File{console}}
	if line, err := terminals.Ask(t.Context(), "%d", 50*time.Millisecond, true); !errors.Is(err, ErrNoAnswer) || line != nil {
		t.Errorf("%q, %v", line, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := terminals.Ask(ctx, "%d", time.Hour, true); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("%v", err)
	}
}

// TestAttackEndlessLine: who types for ever is no answer, and costs no memory.
func TestAttackEndlessLine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	go func() {
		w.Write(bytes.Repeat([]byte("x"), 100*maxLine))
		w.Write([]byte("\n"))
	}()
	if line, err := readLine(t.Context(), r); err != nil || len(line) != 0 {
		t.Errorf("%d bytes, %v", len(line), err)
	}
	go w.Write([]byte(strings.Repeat("y", maxLine) + "\n"))
	if line, err := readLine(t.Context(), r); err != nil || len(line) != maxLine {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}

func TestConsoleThatNobodyReadsDoesNotStopTheOthers(t *testing.T) {
	r, full, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer full.Close()
	full.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for err == nil { // until the pipe holds no more
		_, err = full.Write(make([]byte, 4096))
	}
	person, console := pty(t)
	terminals := &Terminals{ttys: []*os.File{full, console}}
	terminals.Write([]byte("stage=card\n"))
	seen(t, person, "stage=card")
}

func TestNoWatchdog(t *testing.T) {
	w, err := ArmWatchdog(t.TempDir()+"/watchdog0", time.Minute)
	if !errors.Is(err, os.ErrNotExist) || ReasonOf(err) != ReasonWatchdog {
		t.Errorf("%v", err)
	}
	w.Allow(time.Minute)
	w.HandOver()
}
