package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// activeConsoles lists the kernel's consoles, the one behind /dev/console last.
const activeConsoles = "/sys/class/tty/console/active"

// Terminals are all consoles of the machine at once: whoever sits at one of them,
// screen or serial line, sees every line and can answer.
type Terminals struct {
	mu   sync.Mutex
	ttys []*os.File
}

// OpenTerminals opens every active console, /dev/console alone where the kernel
// does not list any. None becomes the controlling terminal.
func OpenTerminals() (*Terminals, error) {
	names := []string{"console"}
	if b, err := os.ReadFile(activeConsoles); err == nil && len(strings.Fields(string(b))) > 0 {
		names = strings.Fields(string(b))
	}
	t := &Terminals{}
	var errs []error
	for _, n := range names {
		f, err := os.OpenFile(filepath.Join("/dev", n), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		t.ttys = append(t.ttys, f)
	}
	if len(t.ttys) == 0 {
		return nil, Failf(ReasonTerminal, "%w", errors.Join(errs...))
	}
	return t, nil
}

// ReasonTerminal: no console can be opened.
const ReasonTerminal Reason = "terminal"

// writeLimit bounds the time for one line on one console: a serial port whose other
// end has stopped reading must not stop the boot.
const writeLimit = 2 * time.Second

// Write writes to all; a console that does not take it is passed over.
func (t *Terminals) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.ttys {
		f.SetWriteDeadline(time.Now().Add(writeLimit)) // a file that knows no deadline is one that does not block for long
		f.Write(b)
	}
	return len(b), nil
}

// ErrNoAnswer: nobody typed a line in time.
var ErrNoAnswer = errors.New("nobody answered")

// maxLine caps what is read of an answer, in bytes.
const maxLine = 512

// Ask shows a prompt with the seconds left on all consoles and returns the first
// line that is typed on one of them, without its end. secret turns the echo off; the
// caller wipes what it gets. The prompt is shown anew every ten seconds.
func (t *Terminals) Ask(ctx context.Context, prompt string, limit time.Duration, secret bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	deadline := time.Now().Add(limit)
	answers := make(chan []byte)
	var readers sync.WaitGroup
	for _, f := range t.ttys {
		restore := setEcho(f, !secret)
		defer restore()
		readers.Go(func() {
			Guard(func() error { // a console that fails is as good as one where nobody types
				line, err := readLine(ctx, f)
				if err != nil {
					return err
				}
				select {
				case answers <- line:
				case <-ctx.Done():
					clear(line)
				}
				return nil
			})
		})
	}
	defer func() { cancel(); readers.Wait() }()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		fmt.Fprintf(t, "\r"+prompt, int(time.Until(deadline).Round(time.Second).Seconds()))
		select {
		case line := <-answers:
			io.WriteString(t, "\r\n")
			return line, nil
		case <-tick.C:
		case <-ctx.Done():
			io.WriteString(t, "\r\n")
			return nil, ErrNoAnswer
		}
	}
}

// readLine reads up to a line feed or carriage return. What is too long is no
// answer to anything: it is read to its end and returned empty.
func readLine(ctx context.Context, f *os.File) ([]byte, error) {
	line := make([]byte, 0, maxLine)
	one := make([]byte, 1)
	long := false
	for {
		if ctx.Err() != nil {
			clear(line)
			return nil, ctx.Err()
		}
		f.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // so that the end of ctx is seen
		n, err := f.Read(one)
		switch {
		case n == 1 && (one[0] == '\n' || one[0] == '\r'):
			if long {
				clear(line)
				return line[:0], nil
			}
			return line, nil
		case n == 1 && len(line) == maxLine:
			long = true
		case n == 1:
			line = append(line, one[0])
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			clear(line)
			return nil, err
		}
	}
}

// setEcho switches the echo of a terminal and drops what was typed before the
// question; where f is no terminal nothing happens.
func setEcho(f *os.File, on bool) (restore func()) {
	nothing := func() {}
	conn, err := f.SyscallConn() // Fd would make reads block, deadlines or not
	if err != nil {
		return nothing
	}
	var old *unix.Termios
	set := func(t unix.Termios) {
		conn.Control(func(fd uintptr) { unix.IoctlSetTermios(int(fd), unix.TCSETSF, &t) })
	}
	conn.Control(func(fd uintptr) { old, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	if err != nil || old == nil {
		return nothing
	}
	t := *old
	t.Lflag |= unix.ICANON
	t.Iflag |= unix.ICRNL
	if on {
		t.Lflag |= unix.ECHO
	} else {
		t.Lflag &^= unix.ECHO | unix.ECHONL
	}
	set(t)
	return func() { set(*old) }
}

// Clear empties the screens that can be emptied; a serial log keeps its lines, only
// a new one begins.
func (t *Terminals) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.ttys {
		if strings.HasPrefix(filepath.Base(f.Name()), "tty") && len(bytes.Trim([]byte(filepath.Base(f.Name())), "ty0123456789")) == 0 {
			io.WriteString(f, "\x1b[H\x1b[2J\x1b[3J")
			continue
		}
		io.WriteString(f, "\r\n")
	}
}
