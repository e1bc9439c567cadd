package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
	"time"
)

// ErrUnsafePath is a package entry whose name leaves the root.
var ErrUnsafePath = errors.New("package entry leaves the root")

// Walk calls f for every entry of the package file at debPath, in its order.
// Names are clean and absolute ("/usr/bin/x"). dpkg-deb decompresses; nothing is
// written and no maintainer script is looked at.
func Walk(ctx context.Context, debPath string, f func(h *tar.Header, r io.Reader) error) error {
	tool, err := NeedTool("dpkg-deb", "dpkg")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, "--fsys-tarfile", debPath)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("open package %s: %w", debPath, err)
	}
	walkErr := walkTar(out, f)
	if walkErr != nil {
		cancel()
		// dpkg-deb has a child that decompresses: it ends when nobody reads.
		out.Close()
	}
	err = cmd.Wait()
	if walkErr != nil {
		return fmt.Errorf("read package %s: %w", debPath, walkErr)
	}
	if err != nil {
		return fmt.Errorf("read package %s: %w: %s", debPath, err, lastLines(errs.String(), 3))
	}
	return nil
}

func walkTar(r io.Reader, f func(h *tar.Header, r io.Reader) error) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // tar's padding, so that dpkg-deb ends well
			return err
		}
		if err != nil {
			return err
		}
		if h.Name, err = clean(h.Name); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeLink {
			if h.Linkname, err = clean(h.Linkname); err != nil {
				return err
			}
		}
		if err := f(h, tr); err != nil {
			return err
		}
	}
}

func clean(name string) (string, error) {
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: %q", ErrUnsafePath, name)
		}
	}
	return path.Clean("/" + name), nil
}
