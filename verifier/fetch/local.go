package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/images/fat"
	"portcullis/verifier/image"
)

// What is looked at on a stick.
const (
	maxDepth  = 4     // directories in one another
	maxNames  = 10000 // files and directories
	maxImages = 32
)

// Found is one image of a stick, or why what looks like one is none.
type Found struct {
	*Image
	Path string
	Err  error
}

// Local finds the images at a path: an archive, the directory of a layout, a mounted
// stick, or a block device (or a file) with a FAT file system. A device is read and
// never mounted. No link is followed. close lets go of all.
func Local(ctx context.Context, where, platform string) (found []Found, done func() error, err error) {
	st, err := os.Stat(where)
	if err != nil {
		return nil, nil, refuse(ReasonNone, "%v", err)
	}
	var v volume
	switch {
	case st.IsDir():
		root, err := os.OpenRoot(where)
		if err != nil {
			return nil, nil, refuse(ReasonNone, "%v", err)
		}
		v = directory{root}
	default:
		f, err := os.OpenFile(where, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, nil, refuse(ReasonNone, "%v", err)
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, nil, errors.Join(refuse(ReasonNone, "%s is neither a directory, a file nor a disk", where), f.Close())
		}
		device := st.Mode()&fs.ModeDevice != 0
		if !device && (!st.Mode().IsRegular() || image.IsArchive(f, size)) {
			i, err := inTar(f, size, platform, f.Close)
			if err != nil {
				return nil, nil, errors.Join(err, f.Close())
			}
			i.Name = where
			return []Found{{Image: i, Path: where}}, i.Close, nil
		}
		disk, err := fat.Open(f, size)
		if err != nil {
			return nil, nil, errors.Join(refuse(ReasonNone, "%s holds neither an archive nor a FAT file system: %v", where, err), f.Close())
		}
		v = stick{disk, f}
	}
	s := search{v: v, platform: platform}
	if err := s.run(ctx, where); err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	if len(s.found) == 0 {
		return nil, nil, errors.Join(refuse(ReasonNone, "no archive (*.tar) and no OCI layout in %s", where), s.Close())
	}
	return s.found, s.Close, nil
}

// volume is where images are searched.
type volume interface {
	// list names every file, sorted, down to maxDepth.
	list() ([]string, error)
	open(name string) (io.ReaderAt, int64, io.Closer, error)
	Close() error
}

type search struct {
	v        volume
	platform string
	found    []Found
	opened   []io.Closer
}

func (s *search) Close() error {
	var err error
	for _, c := range s.opened {
		err = errors.Join(err, c.Close())
	}
	return errors.Join(err, s.v.Close())
}

func (s *search) run(ctx context.Context, where string) error {
	names, err := s.v.list()
	if err != nil {
		return refuse(ReasonNone, "%s: %v", where, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir, base := path.Split(name)
		layout := base == "oci-layout" || base == "OCI-LAYOUT"
		if !layout && !strings.HasSuffix(strings.ToLower(base), ".tar") {
			continue
		}
		if len(s.found) == maxImages {
			return refuse(ReasonTooLarge, "more than %d images in %s", maxImages, where)
		}
		f := Found{Path: strings.TrimSuffix(dir, "/")}
		if layout {
			f.Image, f.Err = inFiles(func(n string) (io.ReaderAt, int64, error) { return s.open(dir + n) }, s.platform, nothing)
		} else {
			f.Path = name
			f.Image, f.Err = s.tar(name)
		}
		if f.Image != nil {
			f.Image.Name = path.Join(where, f.Path)
		}
		s.found = append(s.found, f)
	}
	return nil
}

func nothing() error { return nil }

func (s *search) tar(name string) (*Image, error) {
	r, size, err := s.open(name)
	if err != nil {
		return nil, err
	}
	return inTar(r, size, s.platform, nothing)
}

func (s *search) open(name string) (io.ReaderAt, int64, error) {
	r, size, c, err := s.v.open(name)
	if err != nil {
		return nil, 0, err
	}
	s.opened = append(s.opened, c)
	return r, size, nil
}

// directory is a mounted one.
type directory struct{ root *os.Root }

func (d directory) Close() error { return d.root.Close() }

func (d directory) list() ([]string, error) {
	var out []string
	n := 0
	err := fs.WalkDir(d.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > maxNames {
			return fmt.Errorf("more than %d names", maxNames)
		}
		if e.IsDir() && name != "." && strings.Count(name, "/") == maxDepth-1 {
			return fs.SkipDir
		}
		if e.Type().IsRegular() {
			out = append(out, name)
		}
		return nil
	})
	return out, err
}

func (d directory) open(name string) (io.ReaderAt, int64, io.Closer, error) {
	if !fs.ValidPath(name) {
		return nil, 0, nil, fs.ErrNotExist
	}
	// Links within the directory could lead to a device: what is opened has to be a file.
	st, err := d.root.Lstat(name)
	if err != nil {
		return nil, 0, nil, err
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, 0, nil, err
	}
	now, err := f.Stat()
	if err != nil || !now.Mode().IsRegular() || !os.SameFile(st, now) {
		return nil, 0, nil, errors.Join(refuse(ReasonNone, "%.100q is no file", name), err, f.Close())
	}
	return f, now.Size(), f, nil
}

// stick is a FAT file system that is not mounted.
type stick struct {
	fs   *fat.FS
	file *os.File
}

func (s stick) Close() error { return s.file.Close() }

func (s stick) list() ([]string, error) {
	entries, err := s.fs.List()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !e.Dir && strings.Count(e.Path, "/") < maxDepth {
			out = append(out, e.Path)
		}
	}
	return out, nil
}

func (s stick) open(name string) (io.ReaderAt, int64, io.Closer, error) {
	r, err := s.fs.Reader(name)
	var no *fat.Error
	if errors.As(err, &no) && no.Reason == fat.ReasonNotFound {
		return nil, 0, nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, 0, nil, err
	}
	return r, r.Size(), io.NopCloser(nil), nil
}
