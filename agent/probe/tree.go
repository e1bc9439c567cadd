package probe

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// ErrTree is a tree that is larger than an answer may be.
var ErrTree = errors.New("the tree has more than an answer holds")

// treeWalk is one walk over all trees, by several goroutines that take the
// directories from one list.
type treeWalk struct {
	host Host
	want *protocol.FilesParams
	key  protocol.OpKey
	root int // open directory

	mu      sync.Mutex
	more    *sync.Cond
	waiting []protocol.TreeEntry // directories that nobody has read yet
	busy    int                  // goroutines that may find more of them
	err     error
	data    protocol.FilesData
	entries int
}

// trees walks all trees of a question.
func (h Host) trees(ctx context.Context, key protocol.OpKey, want *protocol.FilesParams) (protocol.FilesData, error) {
	root, err := unix.Open(h.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return protocol.FilesData{}, fmt.Errorf("open %s: %w", h.Root, err)
	}
	defer unix.Close(root)
	w := &treeWalk{host: h, want: want, key: key, root: root}
	w.more = sync.NewCond(&w.mu)
	for _, r := range want.Roots {
		self, _, err := h.entry(root, strings.TrimPrefix(r, "/"), r)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return protocol.FilesData{}, err
		}
		w.waiting = append(w.waiting, self)
	}
	var all sync.WaitGroup
	for range min(runtime.NumCPU(), 4) {
		all.Go(func() { w.work(ctx) })
	}
	all.Wait()
	return w.data, w.err
}

// work reads directories until there are none.
func (w *treeWalk) work(ctx context.Context) {
	r := &treeReader{treeWalk: w, hash: sha256.New(), buf: make([]byte, 64<<10)}
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.waiting) == 0 && w.busy > 0 && w.err == nil {
			w.more.Wait()
		}
		if len(w.waiting) == 0 || w.err != nil {
			w.more.Broadcast()
			return
		}
		self := w.waiting[len(w.waiting)-1]
		w.waiting = w.waiting[:len(w.waiting)-1]
		w.busy++
		w.mu.Unlock()
		d, err := r.dir(ctx, self)
		w.mu.Lock()
		w.busy--
		w.take(d, err)
		w.more.Broadcast()
	}
}

// take puts one directory into the answer; w.mu is held.
func (w *treeWalk) take(d treeDir, err error) {
	switch {
	case w.err != nil:
		return
	case err != nil:
		w.err = err
		return
	}
	w.entries += d.entries
	w.data.Dirs = append(w.data.Dirs, d.dir)
	w.data.Changed = append(w.data.Changed, d.changed...)
	w.waiting = append(w.waiting, d.below...)
	if w.entries > protocol.MaxTreeEntries || len(w.data.Dirs) > protocol.MaxTreeDirs || len(w.data.Changed) > protocol.MaxTreeChanged {
		w.err = ErrTree
	}
}

// treeDir is what one directory adds to the answer.
type treeDir struct {
	dir     protocol.TreeDir
	changed []protocol.TreeEntry
	below   []protocol.TreeEntry
	entries int
}

// treeReader is what one goroutine reads with.
type treeReader struct {
	*treeWalk
	hash hash.Hash
	buf  []byte
	list []protocol.TreeEntry
}

func (w *treeReader) dir(ctx context.Context, self protocol.TreeEntry) (d treeDir, err error) {
	if err := alive(ctx); err != nil {
		return d, err
	}
	if self.Mode&unix.S_IFMT != unix.S_IFDIR {
		return d, fmt.Errorf("%s is no directory", self.Path)
	}
	fd, err := beneath(w.root, self.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return d, err
	}
	f := os.NewFile(uintptr(fd), self.Path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return d, err
	}
	if d.entries = len(names); d.entries > protocol.MaxTreeEntries {
		return d, ErrTree
	}
	slices.Sort(names) // the order of the paths: all have the same directory before them
	w.list = append(w.list[:0], self)
	for _, n := range names {
		name := path.Join(self.Path, n)
		e, young, err := w.host.entry(fd, n, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return d, err
		}
		if e.Mode&unix.S_IFMT == unix.S_IFREG && w.want.Reads(name) {
			if e.SHA256, err = w.digest(fd, n); err != nil {
				return d, fmt.Errorf("%s: %w", name, err)
			}
		}
		w.list = append(w.list, e)
		if young {
			d.changed = append(d.changed, e)
		}
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			d.below = append(d.below, e)
		}
	}
	d.dir = protocol.TreeDir{Path: self.Path, MAC: w.key.MACs().TreeMAC(self.Path, self, w.list[1:])}
	return d, nil
}

func (w *treeReader) digest(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	w.hash.Reset()
	if _, err := io.CopyBuffer(w.hash, fdReader(fd), w.buf); err != nil {
		return nil, err
	}
	return w.hash.Sum(nil), nil
}

// entry describes one name in an open directory; path is how the answer calls it.
// young tells that its time is not of an image: squashfs keeps whole seconds.
func (h Host) entry(dir int, name, path string) (e protocol.TreeEntry, young bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return e, false, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	e = protocol.TreeEntry{Path: clean(path), Mode: st.Mode, UID: st.Uid, GID: st.Gid}
	at := h.CTime(&st)
	young = at%1e9 != 0
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return e, young, nil
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFLNK:
		if e.Target, err = readlinkat(dir, name); err != nil {
			return e, young, &fs.PathError{Op: "readlink", Path: path, Err: err}
		}
		e.Target = clean(e.Target)
	}
	e.CTime = at
	return e, young, nil
}

func readlinkat(dir int, name string) (string, error) {
	var b [protocol.MaxString]byte // PATH_MAX
	n, err := unix.Readlinkat(dir, name, b[:])
	return string(b[:max(n, 0)]), err
}
