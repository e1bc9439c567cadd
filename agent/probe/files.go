package probe

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Files walks the trees that the image fills (configuration, units, programs)
// and keys a digest over every directory: names, types, owners, permissions,
// sizes, times of change and, where it is configuration, the content. What was
// written since the machine booted is listed entry by entry. Of some files that
// the challenge names a piece of the content is read, wherever they lie.
//
// It finds a changed or added unit, rule, account, key or script, a program that
// was put into place and never runs, other permissions and owners, and what was
// taken away. The agent has mounts of its own: what is mounted over the tree
// later does not hide it.
//
// It cannot see files on other file systems (/run, /tmp, /var/lib/docker), what
// was changed and changed back with the clock set to the image's time, nor what
// processes have read before.
type Files struct{ Host }

// Name implements protocol.Probe.
func (*Files) Name() string { return protocol.OpFiles }

// Run implements protocol.Probe.
func (p *Files) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.FilesParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	d, err := p.trees(ctx, key, &want)
	if err != nil {
		return protocol.Output{}, err
	}
	slices.SortFunc(d.Dirs, func(a, b protocol.TreeDir) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(d.Changed, func(a, b protocol.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	for i, l := range want.Opened {
		if err := alive(ctx); err != nil {
			return protocol.Output{}, err
		}
		d.Opened = append(d.Opened, p.open(key, i, l))
	}
	return answer(key, p.Name(), params, d)
}

// open reads the piece of a file that a challenge asks for. What cannot be read
// gets no digest, which is an answer too.
func (h Host) open(key protocol.OpKey, i int, l protocol.Leaf) []byte {
	root, err := unix.Open(h.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(root)
	fd, err := beneath(root, l.Path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	b := make([]byte, protocol.LeafSize)
	n := 0
	for n < len(b) {
		k, err := unix.Pread(fd, b[n:], l.Offset+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil
		}
		if k == 0 {
			break
		}
		n += k
	}
	return key.MACs().LeafMAC(i, l, b[:n])
}

// beneath opens a path below a directory without following any link, so that
// nobody can lead the walk elsewhere (openat2(2)).
func beneath(root int, path string, flags uint64) (int, error) {
	fd, err := unix.Openat2(root, strings.TrimPrefix(path, "/"), &unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// fdReader reads an open file, without what os.File does for those that can wait.
type fdReader int

func (fd fdReader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
