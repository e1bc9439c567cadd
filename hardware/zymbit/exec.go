package zymbit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/hardware"
	"portcullis/internal/clock"
)

// ExecConfig names the vendor's tools. Zero values take the defaults.
type ExecConfig struct {
	Unlock   string        // /sbin/zkunlockifs: locked file → stdout
	Lock     string        // /sbin/zklockifs: plain file → stdout
	Random   string        // /sbin/zkgrifs: number of bytes → stdout
	Env      Env           // given to the tools, with the wake pin
	Timeout  time.Duration // of one run, 10 s
	Attempts int           // 1 to 10; 3: the module sleeps and a first call can go unheard
	Pause    time.Duration // between attempts, 1 s
	Clock    clock.Clock
}

// Exec is the module through the vendor's command line tools, which talk to the chip
// themselves while the vendor's daemon is not running. For the initramfs.
type Exec struct{ c ExecConfig }

var _ hardware.Root = (*Exec)(nil)

// NewExec checks that the unlock tool is there; nothing is asked of the module yet.
func NewExec(c ExecConfig) (*Exec, error) {
	def := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	def(&c.Unlock, "/sbin/zkunlockifs")
	def(&c.Lock, "/sbin/zklockifs")
	def(&c.Random, "/sbin/zkgrifs")
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Attempts <= 0 {
		c.Attempts = 3
	}
	c.Attempts = min(c.Attempts, 10)
	if c.Pause <= 0 {
		c.Pause = time.Second
	}
	if c.Clock == nil {
		c.Clock = clock.Real{}
	}
	if _, err := os.Stat(c.Unlock); err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonAbsent, Err: fmt.Errorf("the vendor's tool: %w", err)}
	}
	return &Exec{c}, nil
}

// Identify says that the tools are there. They have no way to ask who the module is.
func (e *Exec) Identify(context.Context) (hardware.Identity, error) {
	return hardware.Identity{Backend: hardware.BackendZymbit, Manufacturer: "Zymbit", Model: "Zymkey or HSM, by the vendor's tools",
		UnverifiedOnHardware: true}, nil
}

// Random returns n bytes of the module's generator.
func (e *Exec) Random(ctx context.Context, n int) ([]byte, error) {
	if n < 1 || n > 512 {
		return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("%d bytes are not 1 to 512", n)}
	}
	return e.retry(ctx, e.c.Random, nil, n, func(b []byte) error {
		if len(b) != n || bytes.Count(b, b[:1]) == n && n >= 8 {
			return fmt.Errorf("%d bytes of %d, or all alike", len(b), n)
		}
		return nil
	}, strconv.Itoa(n))
}

// Seal locks secret to the module and the card and Pi it is bound to.
func (e *Exec) Seal(ctx context.Context, label string, secret []byte) (json.RawMessage, error) {
	return seal(ctx, e, label, secret)
}

// Unseal runs the unlock tool on the blob.
func (e *Exec) Unseal(ctx context.Context, label string, blob json.RawMessage) ([]byte, error) {
	return unseal(ctx, e, label, blob)
}

func (e *Exec) lock(ctx context.Context, plain []byte) ([]byte, error) {
	return e.retry(ctx, e.c.Lock, plain, MaxLocked, func(b []byte) error {
		if len(b) == 0 {
			return errors.New("nothing came out")
		}
		return nil
	})
}

func (e *Exec) unlock(ctx context.Context, locked []byte) ([]byte, error) {
	// Too little is retried: the vendor's script does so a hundred times for a reason.
	return e.retry(ctx, e.c.Unlock, locked, headSize+64, func(b []byte) error {
		if len(b) < headSize+1 || len(b) != headSize+int(b[headSize-1]) {
			return fmt.Errorf("%d bytes came out that are no payload", len(b))
		}
		return nil
	})
}

// retry runs a tool until check likes what it printed. The last error counts.
func (e *Exec) retry(ctx context.Context, tool string, file []byte, limit int, check func([]byte) error, args ...string) ([]byte, error) {
	var last error
	for i := range e.c.Attempts {
		if i > 0 {
			select {
			case <-e.c.Clock.After(e.c.Pause):
			case <-ctx.Done():
				return nil, &hardware.Error{Reason: hardware.ReasonBusy, Err: errors.Join(ctx.Err(), last)}
			}
		}
		out, err := e.run(ctx, tool, file, limit, args...)
		if err == nil {
			if err = check(out); err == nil {
				return out, nil
			}
			clear(out)
			err = &hardware.Error{Reason: ReasonOutput, Err: err}
		}
		last = err
		if ctx.Err() != nil || hardware.ReasonOf(err) == hardware.ReasonAbsent {
			break
		}
	}
	return nil, last
}

// run runs a tool once. Its input is an anonymous file in memory: what is to be locked
// never has a name on a disk, and nothing secret stands in the arguments.
func (e *Exec) run(ctx context.Context, tool string, file []byte, limit int, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, e.c.Timeout)
	defer cancel()
	c := exec.CommandContext(ctx, tool, args...)
	// The group: a wrapper script's children must not outlive the timeout.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if e.c.Env.WakePin > 0 {
		c.Env = append(c.Env, "ZK_GPIO_WAKE_PIN="+strconv.Itoa(e.c.Env.WakePin))
	}
	c.Env = append(c.Env, e.c.Env.Other...)
	if file != nil {
		f, err := memfile(file)
		if err != nil {
			return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: err}
		}
		defer wipe(f, len(file))
		c.ExtraFiles = []*os.File{f}
		c.Args = append(c.Args, "/proc/self/fd/3")
	}
	out, diag := newSecretBuffer(limit), newSecretBuffer(256)
	diag.keep = true
	c.Stdout, c.Stderr = out, diag
	err := c.Run()
	switch {
	case err == nil && !out.over:
		return out.b, nil
	case err == nil:
		out.wipe()
		return nil, &hardware.Error{Reason: ReasonOutput, Err: fmt.Errorf("%s printed more than %d bytes", tool, limit)}
	}
	out.wipe()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil, &hardware.Error{Reason: hardware.ReasonAbsent, Err: err}
	case ctx.Err() != nil:
		return nil, &hardware.Error{Reason: hardware.ReasonBusy, Err: fmt.Errorf("%s did not end within %s", tool, e.c.Timeout)}
	case out.over:
		return nil, &hardware.Error{Reason: ReasonOutput, Err: fmt.Errorf("%s printed more than %d bytes", tool, limit)}
	}
	return nil, &hardware.Error{Reason: ReasonRefused, Err: fmt.Errorf("%s: %w: %q", tool, err, diag.b)}
}

// Sign cannot be done by the tools.
func (e *Exec) Sign(context.Context, [32]byte) ([]byte, error) {
	return nil, unsupported("the vendor's tools do not sign; zymbitd does")
}

// Forget cannot be done: a locked file opens as long as the module lives.
func (e *Exec) Forget(context.Context, json.RawMessage) error {
	return unsupported("the module cannot forget one file; erase the keyslots instead")
}

// Tampers returns a closed channel: the tools do not wait for events.
func (e *Exec) Tampers(context.Context) (<-chan hardware.Tamper, error) {
	c := make(chan hardware.Tamper)
	close(c)
	return c, nil
}

// Indicate cannot be done by the tools.
func (e *Exec) Indicate(context.Context, hardware.Indication) error {
	return unsupported("the vendor's tools do not drive the LED; zymbitd does")
}

// Close has nothing to close.
func (e *Exec) Close() error { return nil }

func memfile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("zymbit", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "zymbit")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

func wipe(f *os.File, n int) {
	_, _ = f.WriteAt(make([]byte, n), 0)
	f.Close()
}

// secretBuffer has one array of its full size from the start, so that growing leaves
// no copies behind. What goes over is dropped and remembered.
type secretBuffer struct {
	b    []byte
	over bool
	keep bool // too much is no failure
}

func newSecretBuffer(limit int) *secretBuffer { return &secretBuffer{b: make([]byte, 0, limit)} }

var errTooMuch = errors.New("too much output")

// Write makes it an io.Writer for os/exec, which calls ReadFrom instead.
func (s *secretBuffer) Write(p []byte) (int, error) {
	n, err := s.ReadFrom(bytes.NewReader(p))
	return int(n), err
}

// ReadFrom reads straight into the array: io.Copy's own buffer would keep a copy.
func (s *secretBuffer) ReadFrom(r io.Reader) (int64, error) {
	start := len(s.b)
	for len(s.b) < cap(s.b) {
		n, err := r.Read(s.b[len(s.b):cap(s.b)])
		s.b = s.b[:len(s.b)+n]
		if err == io.EOF {
			return int64(len(s.b) - start), nil
		}
		if err != nil {
			return int64(len(s.b) - start), err
		}
	}
	var rest [512]byte
	defer clear(rest[:])
	for {
		n, err := r.Read(rest[:])
		if n > 0 && !s.keep {
			s.over = true
			return int64(cap(s.b) - start), errTooMuch
		}
		if err == io.EOF {
			return int64(cap(s.b) - start), nil
		}
		if err != nil {
			return int64(cap(s.b) - start), err
		}
	}
}

func (s *secretBuffer) wipe() { clear(s.b[:cap(s.b)]) }
