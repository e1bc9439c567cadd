package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// answer is what is typed when a prompt has appeared.
type answer struct {
	prompt string
	text   []byte
}

// converse runs a tool on a terminal of its own and types the answers in turn, each after
// its prompt: softhsm2-util takes PINs from a terminal or from its arguments, where
// everybody could read them. extra are further open files, from descriptor 3 on.
func converse(ctx context.Context, c *exec.Cmd, answers []answer) error {
	master, slave, err := openPTY()
	if err != nil {
		return err
	}
	defer master.Close()
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = c.Start()
	slave.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = master.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	talk := dialogue(master, answers)
	if talk != nil {
		_ = c.Process.Kill()
	}
	if err := c.Wait(); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", c.Path, err), talk)
	}
	return talk
}

// maxDialogue caps what a tool may print, in bytes.
const maxDialogue = 16 << 10

func dialogue(tty io.ReadWriter, answers []answer) error {
	var seen []byte
	defer func() { clear(seen) }()
	buf := make([]byte, 1024)
	for {
		n, err := tty.Read(buf)
		seen = append(seen, buf[:n]...)
		if len(seen) > maxDialogue {
			return errors.New("the tool does not stop talking")
		}
		for len(answers) > 0 {
			i := bytes.Index(seen, []byte(answers[0].prompt))
			if i < 0 {
				break
			}
			seen = seen[i+len(answers[0].prompt):]
			if _, err := tty.Write(append(answers[0].text, '\n')); err != nil {
				return err
			}
			answers = answers[1:]
		}
		switch {
		case err == nil:
		case errors.Is(err, syscall.EIO), errors.Is(err, io.EOF): // Linux's end of a terminal
			if len(answers) > 0 {
				return fmt.Errorf("the tool ended without asking for %q", answers[0].prompt)
			}
			return nil
		default:
			return err
		}
	}
}

func openPTY() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("/dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}
