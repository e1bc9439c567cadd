package image

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// blob is a file of the archive: opened once, read through this handle only.
type blob struct {
	io.ReaderAt
	size  int64
	close func() error
	at    int64 // where it begins in an archive, which has a header before it; 0 = it is a file of its own
}

func (b *blob) reader() *io.SectionReader { return io.NewSectionReader(b, 0, b.size) }

// source is where the files of an archive come from.
type source interface {
	// open returns a regular file by its clean path; fs.ErrNotExist where there is none.
	open(name string) (*blob, error)
	Close() error
}

// dirSource is a directory. No link in it is followed.
type dirSource struct{ root *os.Root }

func (d dirSource) Close() error { return d.root.Close() }

func (d dirSource) open(name string) (*blob, error) {
	if !fs.ValidPath(name) {
		return nil, refuse(ReasonFormat, "file %.100q", name)
	}
	// O_NONBLOCK: a pipe in the place of a file must not hold us up.
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if st, err := d.root.Lstat(dir); err != nil || !st.IsDir() {
			return nil, errors.Join(refuse(ReasonFormat, "%s is no directory", dir), err)
		}
	}
	before, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, refuse(ReasonFormat, "%s is no regular file", name)
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || !os.SameFile(before, st) {
		return nil, errors.Join(refuse(ReasonFormat, "%s is no regular file, or was exchanged", name), err, f.Close())
	}
	return &blob{ReaderAt: f, size: st.Size(), close: f.Close}, nil
}

// maxMembers is how many files an archive may have: three for each layer of an old
// docker save, and some.
const maxMembers = 2048

// tarSource is a tar archive in one file, with the places of its files.
type tarSource struct {
	file    io.ReaderAt
	close   func() error
	members map[string]member
}

type member struct {
	at, size int64
	link     string // of a symbolic link: docker save makes one for a layer that is there twice
}

func (t *tarSource) Close() error { return t.close() }

func (t *tarSource) open(name string) (*blob, error) {
	m, ok := t.members[name]
	if ok && m.link != "" {
		m, ok = t.members[m.link]
	}
	if !ok || m.link != "" {
		return nil, fs.ErrNotExist
	}
	return &blob{io.NewSectionReader(t.file, m.at, m.size), m.size, func() error { return nil }, m.at}, nil
}

// openTar finds the files of an archive in a file, which it closes in the end.
func openTar(f *os.File) (*tarSource, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return newTarSource(f, st.Size(), f.Close)
}

// newTarSource finds the files of the archive. Only headers are read.
func newTarSource(f io.ReaderAt, size int64, done func() error) (*tarSource, error) {
	t := &tarSource{f, done, map[string]member{}}
	return t, t.scan(size, func(*tarSource, member) {})
}

// scan goes through the headers of an archive of at most size bytes, and shows each regular file when its
// header was read.
func (t *tarSource) scan(size int64, file func(*tarSource, member)) error {
	from := io.NewSectionReader(t.file, 0, size)
	r := tar.NewReader(from)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return refuse(ReasonTar, "the archive: %v", err)
		}
		at, err := from.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		m, err := t.add(h, at, size)
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			file(t, m)
		}
	}
}

func (t *tarSource) add(h *tar.Header, at, size int64) (m member, err error) {
	name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
	if h.Typeflag == tar.TypeDir && (name == "" || name == ".") {
		return m, nil
	}
	if !fs.ValidPath(name) || name == "." {
		return m, refuse(ReasonName, "the archive has a file %.100q", h.Name)
	}
	if _, twice := t.members[name]; twice {
		return m, refuse(ReasonDuplicate, "the archive has %.100q twice", name)
	}
	if len(t.members) == maxMembers {
		return m, refuse(ReasonTooLarge, "the archive has more than %d files", maxMembers)
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return m, refuse(ReasonType, "the archive has a sparse file %.100q", name)
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if h.Size > size-at {
			return m, refuse(ReasonTar, "the archive ends inside of %.100q", name)
		}
		m = member{at: at, size: h.Size}
	case tar.TypeDir:
		return m, nil
	case tar.TypeSymlink:
		target := path.Join(path.Dir(name), h.Linkname)
		if path.IsAbs(h.Linkname) || !fs.ValidPath(target) {
			return m, refuse(ReasonLink, "the archive has a link from %.100q to %.100q", name, h.Linkname)
		}
		m = member{link: target}
	default:
		return m, refuse(ReasonType, "the archive has %.100q of the type %q", name, h.Typeflag)
	}
	t.members[name] = m
	return m, nil
}
