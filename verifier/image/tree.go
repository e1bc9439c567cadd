package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"portcullis/verifier/verity"
)

// Kinds of a File.
const (
	KindFile     = 'f'
	KindDir      = 'd'
	KindLink     = 'l' // symbolic
	KindWhiteout = 'w' // the name is taken away from the layers below
	KindOpaque   = 'o' // the directory hides that of the layers below
)

// File is one name of a layer, as it has to be when the layer is unpacked. A hard
// link is a file like the one that it leads to.
type File struct {
	Path   string // clean, relative; "." is the root
	Kind   byte
	Mode   uint32 // permissions with set-id and sticky bits, as in stat(2)
	UID    int
	GID    int
	Size   int64
	Sum    [32]byte // fs-verity's digest of a file's content (package verity)
	Link   string   // where a symbolic link leads
	Xattrs string   // name=value, sorted, each quoted
}

// leaf is the text of f that the tree's root commits to.
func (f *File) leaf() []byte {
	return fmt.Appendf(nil, "%c %04o %d %d %d %x %s %s %s\n", f.Kind, f.Mode, f.UID, f.GID, f.Size, f.Sum, strconv.Quote(f.Path), strconv.Quote(f.Link), f.Xattrs)
}

// Tree is every name of a layer, in the order of their paths, under the root of an
// RFC 6962 tree: one file can be held against the root alone.
type Tree struct {
	Files []File
	Root  string // hex

	budget  *budget
	at      map[string]int  // index in Files, by path
	parents map[string]bool // directories that a name here lies in
}

func newTree(g *budget) *Tree {
	return &Tree{budget: g, at: map[string]int{}, parents: map[string]bool{}}
}

// maxName is PATH_MAX.
const maxName = 4096

// clean gives the path of a name in a layer.
func clean(name string, dir bool) (string, error) {
	p := strings.TrimPrefix(name, "./")
	if dir {
		p = strings.TrimSuffix(p, "/")
		if p == "" || p == "." {
			return ".", nil
		}
	}
	if len(p) > maxName || !fs.ValidPath(p) || p == "." || strings.ContainsFunc(p, unprintable) {
		return "", refuse(ReasonName, "the name %.100q", name)
	}
	return p, nil
}

func unprintable(r rune) bool { return r < 0x20 || r == 0x7f || r == utf8.RuneError }

// AllowedXattr tells which attributes a layer may set. Others steer the file system that the layer
// is unpacked on: trusted.overlay.redirect shows another directory.
func AllowedXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

func xattrs(h *tar.Header) (string, error) {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return "", refuse(ReasonType, "%.100q is a sparse file", h.Name)
		}
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if !AllowedXattr(name) {
			return "", refuse(ReasonType, "%.100q has the attribute %.100q", h.Name, name)
		}
		all = append(all, strconv.Quote(name)+"="+strconv.Quote(h.PAXRecords[key]))
	}
	return strings.Join(all, ","), nil
}

// add takes the next entry of the layer.
func (t *Tree) add(h *tar.Header, content io.Reader) error {
	p, err := clean(h.Name, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	f := File{Path: p, Mode: uint32(h.Mode) & 0o7777, UID: h.Uid, GID: h.Gid}
	if f.Xattrs, err = xattrs(h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		err = f.file(h, content)
	case tar.TypeDir:
		f.Kind = KindDir
	case tar.TypeSymlink:
		err = f.symlink(h.Linkname)
	case tar.TypeLink:
		err = t.hardLink(&f, h.Linkname)
	default:
		err = refuse(ReasonType, "%.100q is of the type %q", h.Name, h.Typeflag)
	}
	if err != nil {
		return err
	}
	return t.place(f)
}

// file reads a regular file, or what a regular file of a reserved name says about
// the layers below (OCI image-spec, layer.md).
func (f *File) file(h *tar.Header, content io.Reader) error {
	f.Kind = KindFile
	if hidden, ok := strings.CutPrefix(path.Base(f.Path), ".wh."); ok {
		if h.Size != 0 {
			return refuse(ReasonType, "the whiteout %.100q has %d bytes", f.Path, h.Size)
		}
		*f = File{Path: path.Dir(f.Path), Kind: KindOpaque}
		if hidden == ".wh..opq" {
			return nil
		}
		f.Kind = KindWhiteout
		if hidden == "" || hidden == "." || hidden == ".." || strings.HasPrefix(hidden, ".wh.") {
			return refuse(ReasonName, "a whiteout of %.100q", hidden)
		}
		f.Path = path.Join(f.Path, hidden)
		return nil
	}
	var sum verity.Digest
	n, err := io.Copy(&sum, content)
	if err != nil {
		return tarError(err)
	}
	if n != h.Size {
		return refuse(ReasonTar, "%.100q has %d bytes, its header says %d", f.Path, n, h.Size)
	}
	f.Size, f.Sum = n, sum.Sum()
	return nil
}

func (f *File) symlink(to string) error {
	f.Kind, f.Link, f.Mode = KindLink, to, 0o777
	if to == "" || len(to) > maxName || strings.ContainsFunc(to, unprintable) {
		return refuse(ReasonLink, "%.100q leads to %.100q", f.Path, to)
	}
	depth := strings.Count(f.Path, "/")
	if strings.HasPrefix(to, "/") {
		depth = 0
	}
	for _, part := range strings.Split(to, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return refuse(ReasonLink, "%.100q leads out of the root, to %.100q", f.Path, to)
			}
		default:
			depth++
		}
	}
	return nil
}

// hardLink is a second name of a file that this layer has before it.
func (t *Tree) hardLink(f *File, to string) error {
	p, err := clean(to, false)
	if err != nil {
		return refuse(ReasonLink, "%.100q is a hard link to %.100q", f.Path, to)
	}
	i, ok := t.at[p]
	if !ok || t.Files[i].Kind != KindFile {
		return refuse(ReasonLink, "%.100q is a hard link to %.100q, which is no file before it in this layer", f.Path, to)
	}
	name := f.Path
	*f = t.Files[i]
	f.Path = name
	return nil
}

// place puts a file in, if its name is free and lies in directories only.
func (t *Tree) place(f File) error {
	key := f.Path
	if f.Kind == KindOpaque {
		key += "/" // a directory may be opaque and be there as well
	} else if f.Kind != KindDir && t.parents[f.Path] {
		return refuse(ReasonLink, "%.100q is no directory, and names before it lie in it", f.Path)
	}
	if _, twice := t.at[key]; twice {
		return refuse(ReasonDuplicate, "%.100q is there twice", f.Path)
	}
	dir := path.Dir(f.Path)
	if f.Kind == KindOpaque {
		dir = f.Path
	}
	for ; dir != "."; dir = path.Dir(dir) {
		if i, ok := t.at[dir]; ok && t.Files[i].Kind != KindDir || !ok && t.budget.links[dir] {
			return refuse(ReasonLink, "%.100q lies in %.100q, which is no directory", f.Path, dir)
		}
		t.parents[dir] = true
	}
	t.at[key] = len(t.Files)
	t.Files = append(t.Files, f)
	if f.Kind == KindLink {
		t.budget.links[f.Path] = true
	} else if f.Kind != KindOpaque {
		delete(t.budget.links, f.Path)
	}
	return nil
}

// done sorts the names and makes the root.
func (t *Tree) done() *Tree {
	t.budget, t.at, t.parents = nil, nil, nil
	slices.SortFunc(t.Files, func(a, b File) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return int(a.Kind) - int(b.Kind)
	})
	hashes := make([]tlog.Hash, len(t.Files))
	for i := range t.Files {
		hashes[i] = tlog.RecordHash(t.Files[i].leaf())
	}
	root := merkle(hashes)
	t.Root = hex.EncodeToString(root[:])
	return t
}

// merkle is the tree hash of RFC 6962 §2.1.
func merkle(hashes []tlog.Hash) tlog.Hash {
	switch len(hashes) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return hashes[0]
	}
	half := 1
	for half*2 < len(hashes) {
		half *= 2
	}
	return tlog.NodeHash(merkle(hashes[:half]), merkle(hashes[half:]))
}
