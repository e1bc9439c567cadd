package gate

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Main is the program. args is runc's command line; what is returned is the exit status
// where the process does not become runc.
func Main(args []string) int {
	c, err := parse(args[1:])
	runc := ""
	if err == nil {
		runc, err = find("runc")
	}
	if err == nil && c.name == start {
		if err = ask(socket(), c.id, Wait); err != nil {
			if left := stop(runc, c.global, c.id); left != nil {
				err = fmt.Errorf("%w; %w", err, left)
			}
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: %v", ErrRunc, syscall.Exec(runc, append([]string{runc}, args[1:]...), os.Environ()))
	}
	fmt.Fprintln(os.Stderr, "runc-gate:", err)
	tell(c.log, err)
	return 1
}

// find looks for a program in PATH, as the engine would have found it. A directory that somebody happens to
// stand in has none.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrRunc, err)
	}
	return path, nil
}

// socket is where the guard answers.
func socket() string {
	if s := os.Getenv(SocketEnv); s != "" {
		return s
	}
	return Socket
}

// tell writes an error where the engine reads it: runc's log, lines of JSON.
func tell(log string, why error) {
	if log == "" {
		return
	}
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return // standard error has it
	}
	defer f.Close()
	json.NewEncoder(f).Encode(map[string]string{"level": "error", "msg": why.Error(), "time": time.Now().UTC().Format(time.RFC3339)})
}

// ask waits until the guard lets a container go. It does without package net, which would be
// half of the program.
func ask(socket, id string, wait time.Duration) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrGuard, err)
	}
	defer syscall.Close(fd)
	err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket})
	if err == nil {
		_, err = syscall.Write(fd, []byte(id+"\n"))
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %v", ErrGuard, socket, err)
	}
	answer, err := readAll(fd, wait)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrGuard, err)
	}
	return parseAnswer(answer)
}

// readAll reads MaxAnswer bytes at most.
func readAll(fd int, wait time.Duration) ([]byte, error) {
	until := time.Now().Add(wait)
	b := make([]byte, 0, MaxAnswer)
	for len(b) < cap(b) {
		left := time.Until(until)
		if left <= 0 {
			return nil, fmt.Errorf("nothing within %s", wait)
		}
		t := syscall.NsecToTimeval(int64(left))
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &t); err != nil {
			return nil, err
		}
		n, err := syscall.Read(fd, b[len(b):cap(b)])
		switch {
		// The time is over, or Go has stopped this thread for a moment: socket(7), signal(7).
		case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		case err != nil:
			return nil, err
		case n == 0:
			return b, nil
		default:
			b = b[:len(b)+n]
		}
	}
	return nil, fmt.Errorf("it says more than %d bytes", MaxAnswer-1)
}
