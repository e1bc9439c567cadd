package channel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// FindPort looks for the device of the virtio-serial port called name, without
// need of udev: sysfs is the root of the guest's sysfs, usually "/sys".
func FindPort(sysfs, name string) (string, error) {
	paths, err := filepath.Glob(filepath.Join(sysfs, "class/virtio-ports/*/name"))
	if err != nil {
		return "", err
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err == nil && strings.TrimSpace(string(b)) == name {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(p))), nil
		}
	}
	return "", fmt.Errorf("channel: no virtio-serial port named %q", name)
}

// Serve answers requests on port until ctx ends. While no host is connected the
// port reads as ended (virtio_console); Serve then looks again every idle.
func Serve(ctx context.Context, port io.ReadWriter, idle time.Duration) error {
	in := bufio.NewReaderSize(port, 64<<10)
	for ctx.Err() == nil {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) {
			select {
			case <-ctx.Done():
			case <-time.After(idle):
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("channel: reading the port: %w", err)
		}
		if len(line) == 0 {
			continue
		}
		if err := writeLine(port, answer(ctx, line)); err != nil {
			return fmt.Errorf("channel: writing the port: %w", err)
		}
	}
	return ctx.Err()
}

func answer(ctx context.Context, line []byte) Response {
	req, err := ParseRequest(line)
	if err != nil {
		return Response{ID: req.ID, Exit: -1, Error: err.Error()}
	}
	limit := time.Minute
	if req.LimitMS > 0 {
		limit = time.Duration(req.LimitMS) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, req.Argv[0], req.Argv[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(req.Stdin), &out, &errOut
	// A command may leave a child in the background that keeps the pipes open.
	cmd.WaitDelay = 200 * time.Millisecond
	err = cmd.Run()
	resp := Response{ID: req.ID, Exit: cmd.ProcessState.ExitCode(), Stdout: out.Bytes(), Stderr: errOut.Bytes()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		resp.Exit, resp.Error = -1, fmt.Sprintf("killed after %s", limit)
	case err == nil, errors.As(err, &exit), errors.Is(err, exec.ErrWaitDelay):
	default:
		resp.Exit, resp.Error = -1, err.Error()
	}
	return resp
}
