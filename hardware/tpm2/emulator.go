package tpm2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"portcullis/hardware"

	"golang.org/x/sys/unix"
)

// emulator connects for every command, so that others may use the emulator in
// between and a restart of it is not noticed.
type emulator struct {
	path    string
	timeout time.Duration
}

func (e *emulator) Send(command []byte) ([]byte, error) {
	deadline := time.Now().Add(e.timeout)
	c, err := connect(e.path, deadline)
	if err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonAbsent, Err: err}
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, headerSize, 512)
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(answer[2:])
	if n < headerSize || n > maxAnswer {
		return nil, fmt.Errorf("the emulator's answer says %d bytes", n)
	}
	answer = append(answer, make([]byte, n-headerSize)...)
	_, err = io.ReadFull(c, answer[headerSize:])
	return answer, err
}

func (e *emulator) Close() error { return nil }

// connect opens a UNIX stream socket. Package net would do, but pi-init has this code
// too, and net's resolver of names with it would be a twentieth of its size.
func connect(path string, deadline time.Time) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		// Somebody else is being served, or a signal came.
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
