package tpm2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"portcullis/hardware"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// maxAnswer is the longest answer of a chip that is read, in bytes; Part 2 leaves
// MAX_RESPONSE_SIZE to the implementation, the kernel's buffer has 4096.
const maxAnswer = 4096

const headerSize = 10 // tag, size, response code

// link sends commands with a deadline, and again where the chip asks for that.
type link struct {
	c       transport.TPMCloser
	timeout time.Duration
	ctx     context.Context // of the operation under way
	// lost is set when an answer is overdue: it may still come, and must not be
	// taken for the answer to a later command.
	lost bool
}

func newLink(c transport.TPMCloser, timeout time.Duration) *link {
	return &link{c: c, timeout: timeout}
}

func busy(format string, a ...any) error {
	return &hardware.Error{Reason: hardware.ReasonBusy, Err: fmt.Errorf(format, a...)}
}

// Send implements transport.TPM.
func (l *link) Send(command []byte) ([]byte, error) {
	ctx := l.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		answer, err := l.once(ctx, command)
		if err != nil || !again(answer) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, busy("the chip is busy: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (l *link) once(ctx context.Context, command []byte) ([]byte, error) {
	if l.lost {
		return nil, busy("the chip did not answer an earlier command")
	}
	if err := ctx.Err(); err != nil {
		return nil, busy("%w", err)
	}
	type result struct {
		answer []byte
		err    error
	}
	// go-tpm keeps command only for this call; the goroutine may outlive it.
	own := append([]byte(nil), command...)
	c := make(chan result, 1)
	go func() {
		defer clear(own)
		answer, err := l.c.Send(own)
		c <- result{answer, err}
	}()
	select {
	case <-ctx.Done():
		l.lost = true
		return nil, busy("the chip did not answer in time: %w", ctx.Err())
	case r := <-c:
		if r.err != nil {
			if errors.Is(r.err, os.ErrDeadlineExceeded) || errors.Is(r.err, syscall.EBUSY) {
				return nil, busy("%w", r.err)
			}
			return nil, r.err
		}
		return r.answer, framed(r.answer)
	}
}

// framed checks an answer's header before go-tpm reads it.
func framed(answer []byte) error {
	if len(answer) < headerSize || len(answer) > maxAnswer {
		return fmt.Errorf("the chip answered with %d bytes", len(answer))
	}
	if n := binary.BigEndian.Uint32(answer[2:]); int64(n) != int64(len(answer)) {
		return fmt.Errorf("the chip's answer says %d bytes and has %d", n, len(answer))
	}
	return nil
}

// again reports whether the chip did nothing and asks to be asked again.
func again(answer []byte) bool {
	if len(answer) < headerSize {
		return false
	}
	switch tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

func (l *link) close() error {
	if l.c == nil {
		return nil
	}
	c := l.c
	l.c, l.lost = nil, true
	return c.Close()
}

func dial(path string, timeout time.Duration) (transport.TPMCloser, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &hardware.Error{Reason: hardware.ReasonAbsent, Err: err}
	}
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeSocket != 0 {
		return &emulator{path: path, timeout: timeout}, nil
	}
	c, err := linuxtpm.Open(path)
	if errors.Is(err, syscall.EBUSY) {
		return nil, busy("%w", err)
	}
	if err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonAbsent, Err: err}
	}
	return c, nil
}
