package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/images/deb"
	"portcullis/images/debroot"
)

// nobody builds: neither a bug of the source's build rules nor an attack on them
// reaches anything outside of the directory.
const nobody = 65534

// room is a directory with the tools of a build, to be entered by chroot(2).
type room struct {
	dir  string
	root *os.Root
}

// newRoom makes dir anew.
func newRoom(dir string) (*room, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &room{dir, root}, nil
}

func (r *room) close() error { return errors.Join(r.root.Close(), os.RemoveAll(r.dir)) }

// unpack puts the files of packages in place. No script is run; base-files is first
// because it has the links /bin and /lib.
func (r *room) unpack(ctx context.Context, store *deb.Store, packages []deb.Package, step func(done, total int64)) error {
	packages = slices.Clone(packages)
	slices.SortStableFunc(packages, func(a, b deb.Package) int {
		switch {
		case a.Name == "base-files":
			return -1
		case b.Name == "base-files":
			return 1
		}
		return 0
	})
	var done, total int64
	for _, p := range packages {
		total += p.Size
	}
	for _, p := range packages {
		if err := deb.Walk(ctx, store.Path(p), r.put); err != nil {
			return err
		}
		done += p.Size
		step(done, total)
	}
	return nil
}

// put writes one entry of a package. os.Root keeps it below the directory.
func (r *room) put(h *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(h.Name, "/")
	if name == "" {
		return nil
	}
	if h.Typeflag == tar.TypeDir {
		if st, err := r.root.Stat(name); err == nil && st.IsDir() {
			return nil // perhaps through a link such as /lib
		}
		return r.root.MkdirAll(name, 0o755)
	}
	if err := r.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := r.root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fs.FileMode(h.Mode)&0o755)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, content); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	case tar.TypeSymlink:
		return r.link(name, h.Linkname)
	case tar.TypeLink:
		return r.root.Link(strings.TrimPrefix(h.Linkname, "/"), name)
	}
	return nil
}

func (r *room) link(name, target string) error {
	err := r.root.Symlink(target, name)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// furnish adds what maintainer scripts would have made, and the four devices that
// hold nothing of the machine.
func (r *room) furnish() error {
	for name, target := range map[string]string{
		"usr/bin/awk": "mawk", "usr/bin/gcc": compiler, "usr/bin/cc": compiler, "usr/bin/cpp": strings.Replace(compiler, "gcc", "cpp", 1),
	} {
		if err := r.link(name, target); err != nil {
			return err
		}
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	// The script that packs the kernel's own initramfs, and the compiler, write there.
	if err := r.mkdir("/tmp"); err != nil {
		return err
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "urandom": 9} {
		if err := unix.Mknod(filepath.Join(r.dir, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("device %s of the build: %w", name, err)
		}
	}
	return nil
}

// mkdir makes a directory that the build may write to.
func (r *room) mkdir(name string) error {
	name = strings.TrimPrefix(name, "/")
	if err := r.root.MkdirAll(name, 0o755); err != nil {
		return err
	}
	return r.root.Lchown(name, nobody, nobody)
}

// run executes a program of the room in a directory of it, as nobody, in namespaces
// of its own. line is told every line of what it writes.
func (r *room) run(ctx context.Context, dir string, env []string, line func(string), name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: r.dir, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL,
		// With its own process namespace everything ends with the first process.
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	out := &lines{each: line}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return &debroot.Error{Reason: ReasonFailed, Msg: fmt.Sprintf("%s: %s", path.Base(name), out.why()), Err: err}
	}
	return nil
}

// lines hands on whole lines and remembers the last ones, and the first that tell of
// an error: with many compilers at a time the others write on for a while.
type lines struct {
	each   func(string)
	rest   []byte
	errors []string
	last   []string
}

const (
	maxLine    = 4096
	lastLines  = 8
	errorLines = 4
)

// errorWords are in the lines with which compilers, linkers and make say what is wrong.
var errorWords = []string{"error:", "fatal:", "Killed", "No space left", "cannot ", "undefined reference", "No such file", "not found", "*** ["}

func (l *lines) keep(text string) {
	text = strings.ToValidUTF8(text[:min(len(text), 300)], "?")
	l.last = append(l.last, text)
	l.last = l.last[max(0, len(l.last)-lastLines):]
	if len(l.errors) < errorLines && slices.ContainsFunc(errorWords, func(w string) bool { return strings.Contains(text, w) }) {
		l.errors = append(l.errors, text)
	}
}

// why is what is known of a failure: the first lines that tell of an error, else the last lines.
func (l *lines) why() string {
	if len(l.errors) > 0 {
		return strings.Join(l.errors, "; ")
	}
	return strings.Join(l.last, "; ")
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		text, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			break
		}
		l.rest = rest
		l.keep(string(text))
		if l.each != nil {
			l.each(string(text))
		}
	}
	if len(l.rest) > maxLine {
		l.rest = l.rest[:0]
	}
	return len(b), nil
}
