package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// programs are built for a lab, by package below cmd/.
var programs = []string{"portcullis", "gatewayd", "pxed", "attestd", "hpc-init", "hpc-agent", "hpc-lab"}

// FindRepository returns the nearest directory at or above start that holds this
// module.
func FindRepository(start string) (string, error) {
	dir, err := filepath.Abs(start)
	if err != nil {
		return "", err
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module portcullis\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("lab: %s is not inside a checkout of portcullis; the lab builds its programs and image from one", start)
		}
		dir = filepath.Dir(dir)
	}
}

// findGo looks where root's PATH often does not.
func findGo() (string, error) {
	if p, err := exec.LookPath("go"); err == nil {
		return p, nil
	}
	for _, p := range []string{"/usr/local/go/bin/go", "/usr/lib/go-1.26/bin/go"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", errors.New("lab: Go not found in PATH or /usr/local/go/bin; deploy/setup.sh installs it")
}

// buildPrograms builds all programs into repo/bin; Go's own cache makes the second
// time quick. Two labs that start together take turns.
func buildPrograms(ctx context.Context, repo string) (bin string, err error) {
	goTool, err := findGo()
	if err != nil {
		return "", err
	}
	unlock, err := buildLock(ctx, repo, "programs")
	if err != nil {
		return "", err
	}
	defer unlock()
	bin = filepath.Join(repo, "bin")
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", bin + string(filepath.Separator)}
	for _, p := range programs {
		args = append(args, "./cmd/"+p)
	}
	cmd := exec.CommandContext(ctx, goTool, args...)
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if os.Getenv("HOME") == "" {
		cmd.Env = append(cmd.Env, "HOME=/root")
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lab: go %s: %w\n%s", strings.Join(args, " "), err, out.String())
	}
	return bin, nil
}

// buildLock lets one process at a time build a thing below repo/build.
func buildLock(ctx context.Context, repo, what string) (unlock func(), err error) {
	dir := filepath.Join(repo, "build", "lab")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, what+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err = <-locked:
	case <-ctx.Done():
		err = ctx.Err() // the waiting goroutine ends with the process, or with the lock
	}
	if err != nil {
		return nil, fmt.Errorf("lab: waiting for another build: %w", err)
	}
	return func() { f.Close() }, nil
}

// lastLine returns the end of a log for an error message.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	if len(b) > 800 {
		b = b[len(b)-800:]
	}
	return string(b)
}
