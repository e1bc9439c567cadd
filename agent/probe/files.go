package probe

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Files walks the trees that the image fills (configuration, units, programs)
// and keys a digest over every directory: names, types, owners, permissions,
// sizes, times of change and, where it is configuration, the content. What was
// written since the machine booted is listed entry by entry.
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
	w := &treeWalk{host: p.Host, want: &want, key: key}
	for _, root := range want.Roots {
		self, err := p.Entry(p.at(root), root)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return protocol.Output{}, err
		}
		if err := w.dir(ctx, self); err != nil {
			return protocol.Output{}, err
		}
	}
	slices.SortFunc(w.data.Dirs, func(a, b protocol.TreeDir) int { return strings.Compare(a.Path, b.Path) })
	return answer(key, p.Name(), params, w.data)
}

func (h Host) at(path string) string { return filepath.Join(h.Root, path) }

type treeWalk struct {
	host    Host
	want    *protocol.FilesParams
	key     protocol.OpKey
	data    protocol.FilesData
	entries int
}

// ErrTree is a tree that is larger than an answer may be.
var ErrTree = errors.New("the tree has more than an answer holds")

func (w *treeWalk) dir(ctx context.Context, self protocol.TreeEntry) error {
	if err := alive(ctx); err != nil {
		return err
	}
	if self.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s is no directory", self.Path)
	}
	names, err := os.ReadDir(w.host.at(self.Path))
	if err != nil {
		return err
	}
	if w.entries += len(names); w.entries > protocol.MaxTreeEntries || len(w.data.Dirs) == protocol.MaxTreeDirs {
		return ErrTree
	}
	var entries []protocol.TreeEntry
	for _, n := range names {
		name := path.Join(self.Path, n.Name())
		e, err := w.host.Entry(w.host.at(name), name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		if e.Mode&unix.S_IFMT == unix.S_IFREG && w.want.Reads(name) {
			if e.SHA256, err = digestOf(w.host.at(name)); err != nil {
				return err
			}
		}
		entries = append(entries, e)
		if e.CTime%1e9 != 0 || e.Mode&unix.S_IFMT == unix.S_IFDIR && w.host.young(name) {
			if len(w.data.Changed) == protocol.MaxTreeChanged {
				return ErrTree
			}
			w.data.Changed = append(w.data.Changed, e)
		}
	}
	slices.SortFunc(entries, func(a, b protocol.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	w.data.Dirs = append(w.data.Dirs, protocol.TreeDir{Path: self.Path, MAC: w.key.TreeMAC(self.Path, self, entries)})
	for _, e := range entries {
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := w.dir(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// young tells whether a directory's time is not of an image: squashfs keeps
// whole seconds.
func (h Host) young(name string) bool {
	var st unix.Stat_t
	return unix.Lstat(h.at(name), &st) == nil && st.Ctim.Nsec != 0
}

func digestOf(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// lstatEntry describes one name; path is how the answer calls it.
func lstatEntry(name, path string) (e protocol.TreeEntry, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return e, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	e = protocol.TreeEntry{Path: clean(path), Mode: st.Mode, UID: st.Uid, GID: st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return e, nil
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFLNK:
		target, err := os.Readlink(name)
		if err != nil {
			return e, err
		}
		e.Target = clean(target)
	}
	e.CTime = st.Ctim.Nano()
	return e, nil
}
