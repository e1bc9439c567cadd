package image

import (
	"archive/tar"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

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

// owner tells whether a file can belong to id: 2^32-1 stands for nobody in chown(2).
func owner(id int) bool { return id >= 0 && int64(id) < 1<<32-1 }

// add takes the next entry of the layer.
func (t *Tree) add(h *tar.Header, content io.Reader) error {
	p, err := clean(h.Name, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	if !owner(h.Uid) || !owner(h.Gid) {
		return refuse(ReasonType, "%.100q belongs to %d:%d", h.Name, h.Uid, h.Gid)
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
	i, ok := t.find(p, false)
	if !ok || t.entry(i).kind != KindFile {
		return refuse(ReasonLink, "%.100q is a hard link to %.100q, which is no file before it in this layer", f.Path, to)
	}
	name := f.Path
	*f = t.file(i)
	f.Path = name
	return nil
}
