package squash

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/images/deb"
)

// Options of the squashfs.
type Options struct {
	Level     int // zstd, 1..22
	BlockSize int // bytes, a power of two, 4096..1 MiB
}

// Tool returns the program that writes squashfs and its version, which is part
// of what the bytes depend on.
func Tool(ctx context.Context) (path, version string, err error) {
	path, err = deb.NeedTool("mksquashfs", "squashfs-tools")
	if err != nil {
		return "", "", err
	}
	out, _ := exec.CommandContext(ctx, path, "-version").CombinedOutput() // some releases end with 1 here
	line, _, _ := strings.Cut(string(out), "\n")
	return path, strings.TrimSpace(line), nil
}

// WriteTar writes the tree as a tar stream, sorted by path.
func (t *Tree) WriteTar(w io.Writer, progress func(done, total int64)) error {
	paths := t.Paths()
	var total, done int64
	for _, p := range paths {
		if n := t.nodes[p]; n.Kind == File {
			total += n.Content.Size()
		}
	}
	tw := tar.NewWriter(w)
	for _, p := range paths {
		n := t.nodes[p]
		if p == "/" {
			continue // its attributes are options of the writer
		}
		h := &tar.Header{Format: tar.FormatGNU, Name: "." + p, Mode: int64(n.Mode), Uid: n.UID, Gid: n.GID, ModTime: n.Time}
		switch n.Kind {
		case Dir:
			h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix("."+p, "/")+"/"
		case Symlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, n.Target
		case File:
			h.Typeflag, h.Size = tar.TypeReg, n.Content.Size()
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if n.Kind == File {
			if _, err := io.Copy(tw, n.Content.Open()); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
			done += n.Content.Size()
			if progress != nil {
				progress(done, total)
			}
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("%w: %w", errMark, err)
	}
	return nil
}

// errMark: all of the tree was written, and the mark of its end was not: two empty
// blocks, which are written one by one.
var errMark = errors.New("end of the archive")

// readToItsEnd tells whether a reader that ended well has left nothing of value
// unread: mksquashfs ends with the first empty block, and may be gone before the second.
func readToItsEnd(err error) bool {
	return err == nil || errors.Is(err, errMark) && errors.Is(err, unix.EPIPE)
}

// Write makes the squashfs file out from the tree.
func (t *Tree) Write(ctx context.Context, out string, o Options, progress func(done, total int64)) error {
	tool, _, err := Tool(ctx)
	if err != nil {
		return err
	}
	if err := os.Remove(out); err != nil && !os.IsNotExist(err) {
		return err
	}
	// One time for all: of a tar stream the root's own time cannot be set otherwise.
	stamp := strconv.FormatInt(t.Time.Unix(), 10)
	cmd := exec.CommandContext(ctx, tool, "-", out, "-tar",
		"-comp", "zstd", "-Xcompression-level", strconv.Itoa(o.Level), "-b", strconv.Itoa(o.BlockSize),
		"-no-xattrs", "-reproducible", "-mkfs-time", stamp, "-all-time", stamp, "-root-mode", "755", "-root-uid", "0", "-root-gid", "0",
		"-exit-on-error", "-no-progress", "-quiet")
	// The variable would collide with the explicit times.
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "SOURCE_DATE_EPOCH=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &errs, &errs
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", tool, err)
	}
	writeErr := t.WriteTar(in, progress)
	in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("write squashfs: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	if !readToItsEnd(writeErr) {
		return fmt.Errorf("write squashfs: %w", writeErr)
	}
	return nil
}
