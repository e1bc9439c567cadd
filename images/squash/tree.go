package squash

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"
	"time"
)

// Content gives the bytes of a regular file; Open may be called many times.
type Content interface {
	Size() int64
	Open() io.Reader
}

// Bytes is content in memory.
type Bytes []byte

// Size returns the length.
func (b Bytes) Size() int64 { return int64(len(b)) }

// Open reads from the start.
func (b Bytes) Open() io.Reader { return bytes.NewReader(b) }

// Section is content inside an open file.
type Section struct {
	File   io.ReaderAt
	Offset int64
	Length int64
}

// Size returns the length.
func (s Section) Size() int64 { return s.Length }

// Open reads from the start.
func (s Section) Open() io.Reader { return io.NewSectionReader(s.File, s.Offset, s.Length) }

// Kind is the type of a node.
type Kind byte

// Kinds. There are no devices and no hard links in an image.
const (
	Dir     Kind = 'd'
	File    Kind = 'f'
	Symlink Kind = 'l'
)

// Node is one entry of the tree.
type Node struct {
	Kind     Kind
	Mode     uint32 // Unix permission bits with setuid (04000), setgid and sticky
	UID, GID int
	Time     time.Time
	Target   string // of a symlink
	Content  Content
}

// Tree maps clean absolute paths to nodes. "/" is always there.
type Tree struct {
	nodes map[string]*Node
	// Time is given to directories made on the way; seconds since 1970, UTC.
	Time time.Time
}

// NewTree returns a tree with a root directory.
func NewTree(t time.Time) *Tree {
	return &Tree{nodes: map[string]*Node{"/": {Kind: Dir, Mode: 0o755, Time: t}}, Time: t}
}

// ErrLoop is a chain of symlinks without an end.
var ErrLoop = errors.New("too many levels of symbolic links")

// Resolve follows symlinks in the directories of p, not in its last part: after
// the /usr merge a package that still ships /lib/x lands in /usr/lib/x.
func (t *Tree) Resolve(p string) (string, error) {
	p = path.Clean("/" + p)
	for hops := 0; hops < 40; hops++ {
		next, changed := t.resolveOnce(p)
		if !changed {
			return p, nil
		}
		p = next
	}
	return "", fmt.Errorf("%s: %w", p, ErrLoop)
}

func (t *Tree) resolveOnce(p string) (string, bool) {
	for i := 1; i < len(p); i++ {
		if p[i] != '/' {
			continue
		}
		n := t.nodes[p[:i]]
		if n == nil || n.Kind != Symlink {
			continue
		}
		target := n.Target
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(p[:i]), target)
		}
		return path.Join(path.Clean(target), p[i:]), true
	}
	return p, false
}

// Put places n at p and makes the directories above. A directory over a
// directory changes its attributes; anything else over a directory is an error.
func (t *Tree) Put(p string, n *Node) error {
	p, err := t.Resolve(p)
	if err != nil {
		return err
	}
	if old := t.nodes[p]; old != nil && old.Kind == Dir && n.Kind != Dir {
		return fmt.Errorf("%s is a directory and cannot become a file or link", p)
	} else if old != nil && old.Kind == Symlink && n.Kind == Dir {
		return nil // /lib of a package where the merged tree has a link
	} else if old != nil && old.Kind == File && n.Kind == Dir {
		return fmt.Errorf("%s is a file and cannot become a directory", p)
	}
	for d := path.Dir(p); ; d = path.Dir(d) {
		if up := t.nodes[d]; up != nil {
			if up.Kind != Dir {
				return fmt.Errorf("%s is not a directory (needed for %s)", d, p)
			}
			break
		}
		t.nodes[d] = &Node{Kind: Dir, Mode: 0o755, Time: t.Time}
	}
	t.nodes[p] = n
	return nil
}

// Get returns the node at p, or nil; links in its directories are followed.
func (t *Tree) Get(p string) *Node {
	p, err := t.Resolve(p)
	if err != nil {
		return nil
	}
	return t.nodes[p]
}

// Read returns the bytes of the regular file at p, following links.
func (t *Tree) Read(p string) ([]byte, error) {
	for hops := 0; hops < 40; hops++ {
		full, err := t.Resolve(p)
		if err != nil {
			return nil, err
		}
		n := t.nodes[full]
		switch {
		case n == nil:
			return nil, fmt.Errorf("%s: %w", p, os.ErrNotExist)
		case n.Kind == File:
			return io.ReadAll(n.Content.Open())
		case n.Kind == Symlink && path.IsAbs(n.Target):
			p = n.Target
		case n.Kind == Symlink:
			p = path.Join(path.Dir(full), n.Target)
		default:
			return nil, fmt.Errorf("%s is a directory", p)
		}
	}
	return nil, fmt.Errorf("%s: %w", p, ErrLoop)
}

// Remove drops p and everything below it.
func (t *Tree) Remove(p string) {
	p, err := t.Resolve(p)
	if err != nil || p == "/" {
		return
	}
	delete(t.nodes, p)
	for k := range t.nodes {
		if strings.HasPrefix(k, p+"/") {
			delete(t.nodes, k)
		}
	}
}

// Paths returns every path, sorted; parents come before their children.
func (t *Tree) Paths() []string {
	out := make([]string, 0, len(t.nodes))
	for p := range t.nodes {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

// WriteFile puts a root-owned regular file.
func (t *Tree) WriteFile(p string, mode uint32, content []byte) error {
	return t.Put(p, &Node{Kind: File, Mode: mode, Time: t.Time, Content: Bytes(content)})
}

// Link puts a symlink.
func (t *Tree) Link(p, target string) error {
	return t.Put(p, &Node{Kind: Symlink, Mode: 0o777, Time: t.Time, Target: target})
}

// Mkdir puts a root-owned directory.
func (t *Tree) Mkdir(p string, mode uint32) error {
	return t.Put(p, &Node{Kind: Dir, Mode: mode, Time: t.Time})
}

// FromHeader turns a package's tar entry into a node. ok is false for entries
// that an image does not carry (devices, sockets).
func FromHeader(h *tar.Header, c Content) (n *Node, ok bool) {
	n = &Node{Mode: uint32(h.Mode & 0o7777), UID: h.Uid, GID: h.Gid, Time: h.ModTime.UTC().Truncate(time.Second)}
	switch h.Typeflag {
	case tar.TypeDir:
		n.Kind = Dir
	case tar.TypeReg:
		n.Kind, n.Content = File, c
	case tar.TypeSymlink:
		n.Kind, n.Target = Symlink, h.Linkname
	default:
		return nil, false
	}
	return n, true
}

// SetTime sets the time of what is put from now on and of every directory that
// had none of its own.
func (t *Tree) SetTime(now time.Time) {
	for _, n := range t.nodes {
		if n.Time.Equal(t.Time) {
			n.Time = now
		}
	}
	t.Time = now
}
