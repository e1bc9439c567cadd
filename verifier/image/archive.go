package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"portcullis/verifier/approval"
)

// Layer is one layer of an image that was read.
type Layer struct {
	Digest    string // of the blob as it is packed
	DiffID    string // unpacked
	Size      int64  // packed, bytes
	Unpacked  int64  // bytes
	MediaType string
	Tree      *Tree // its files; nil behind Options.Layer

	packing packing
	file    string // name in the source
	blob    *blob
}

// Archive is an image outside of an engine: every digest was held against its
// bytes. Its files stay open until Close.
type Archive struct {
	Platform string // "linux/arm64"
	User     string // that the configuration names; the engine's default for a container
	Layers   []Layer

	manifest     []byte
	manifestType string
	config       []byte
	source       source
}

// Open reads the image in a directory (OCI layout) or in a tar archive (OCI layout
// or docker save). Every blob is opened once and read once.
func Open(ctx context.Context, path string, o Options) (*Archive, error) {
	s, err := openSource(path)
	if err != nil {
		return nil, err
	}
	return read(ctx, s, o, nil)
}

func openSource(path string) (source, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, err
		}
		return dirSource{root}, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(refuse(ReasonFormat, "%s is neither a directory nor a regular file", path), err, f.Close())
	}
	s, err := openTar(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// read reads an image; known is what was found of its layers already, by where they begin.
func read(ctx context.Context, s source, o Options, known map[int64]*contents) (*Archive, error) {
	a := &Archive{source: s}
	if err := a.read(ctx, o, known); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// head reads what the image says of itself. made is where it came without a manifest.
func (a *Archive) head(platform string) (made bool, err error) {
	err = a.ociImage(a.source, platform)
	if made = errors.Is(err, fs.ErrNotExist); made {
		err = a.dockerImage(a.source)
	}
	if err == nil && platform != "" && a.Platform != platform {
		err = refuse(ReasonPlatform, "for %s, not for %s", a.Platform, platform)
	}
	return made, err
}

func (a *Archive) read(ctx context.Context, o Options, known map[int64]*contents) error {
	made, err := a.head(o.Platform)
	if err != nil {
		return err
	}
	g := &budget{limits: o.Limits.filled(), links: map[pathSum]bool{}, progress: o.Progress}
	if err := a.openLayers(g); err != nil {
		return err
	}
	for i := range a.Layers {
		l := &a.Layers[i]
		if c := known[l.blob.at]; c != nil && c.fits(l.packing, g) {
			g.take(c)
			err = l.compare(c)
		} else if err = l.read(ctx, l.blob, g); err == nil && o.Layer != nil {
			err = o.Layer(l)
			l.Tree = nil
		}
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if made {
		return a.makeManifest()
	}
	return nil
}

func (a *Archive) openLayers(g *budget) (err error) {
	for i := range a.Layers {
		l := &a.Layers[i]
		if l.blob, err = a.source.open(l.file); err != nil {
			return missing(err, l.file)
		}
		if l.Size != 0 && l.blob.size != l.Size {
			return refuse(ReasonBlob, "layer %d has %d bytes, %d were named", i, l.blob.size, l.Size)
		}
		if g.total += l.blob.size; g.total > g.limits.Packed {
			return refuse(ReasonTooLarge, "more than %d bytes", g.limits.Packed)
		}
	}
	return nil
}

// Image is what the image is.
func (a *Archive) Image() approval.Image {
	i := approval.Image{Manifest: approval.Digest(a.manifest), Config: approval.Digest(a.config)}
	for _, l := range a.Layers {
		i.Layers = append(i.Layers, l.DiffID)
	}
	return i
}

// Spare is how many bytes of the file that Read took the archive into are not the image's, beside a few of each
// name: what else lies in an archive nobody looks at.
func (a *Archive) Spare() (int64, error) {
	file, err := a.taken()
	if err != nil {
		return 0, err
	}
	st, err := file.Stat()
	if err != nil {
		return 0, err
	}
	spare, seen := st.Size()-int64(len(a.manifest)+len(a.config)), map[string]bool{}
	for _, l := range a.Layers {
		if !seen[l.Digest] {
			spare -= l.Size
		}
		seen[l.Digest] = true
	}
	return spare, nil
}

// taken is the file that Read took the archive into.
func (a *Archive) taken() (*os.File, error) {
	if t, ok := a.source.(*tarSource); ok {
		if file, ok := t.file.(*os.File); ok {
			return file, nil
		}
	}
	return nil, errors.New("the image does not come from one file")
}

// Keep gives the file that Read took the archive into the name path, which has to be on
// the file system of that directory; what had the name before is gone. Not a byte is
// copied, and none is awaited on the disk: who opens it later reads every digest again.
func (a *Archive) Keep(path string) error {
	file, err := a.taken()
	if err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(path), ".next-"+rand.Text())
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.AT_FDCWD, next, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return &os.LinkError{Op: "link", Old: file.Name(), New: next, Err: err}
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}

// Close lets go of the files.
func (a *Archive) Close() error {
	var all []error
	for _, l := range a.Layers {
		if l.blob != nil {
			all = append(all, l.blob.close())
		}
	}
	return errors.Join(append(all, a.source.Close())...)
}

// Tar writes the one form of the image that an engine gets: an OCI layout which is
// an archive of docker save as well, without a name or tag, of the files that were
// read and nothing else. It has the same bytes for the same image. Whoever loads it
// asks the engine for the digests afterwards: it computes them itself.
func (a *Archive) Tar() io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriterSize(w, copySize)
		w.CloseWithError(errors.Join(a.write(b), b.Flush()))
	}()
	return r
}

type tarFile struct {
	name string
	data io.Reader
	size int64
}

func (a *Archive) write(w io.Writer) error {
	files, err := a.files()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: f.size, Format: tar.FormatUSTAR}
		if f.size > 8<<30-1 {
			h.Format = tar.FormatGNU
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(t, f.data); err != nil {
			return err
		}
	}
	return t.Close()
}

// files are those of the archive, in their order. A layer that is there twice is
// written once.
func (a *Archive) files() ([]tarFile, error) {
	i := a.Image()
	top, err := Index(a.manifest, a.manifestType)
	if err != nil {
		return nil, err
	}
	type saved struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	old := saved{Config: blobPath(i.Config)}
	for _, l := range a.Layers {
		old.Layers = append(old.Layers, blobPath(l.Digest))
	}
	list, err := compact([]saved{old})
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var files []tarFile
	add := func(name string, data io.Reader, size int64) {
		if !seen[name] {
			files, seen[name] = append(files, tarFile{name, data, size}), true
		}
	}
	text := func(name string, b []byte) { add(name, bytes.NewReader(b), int64(len(b))) }
	text("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	text("index.json", top)
	text("manifest.json", list)
	text(blobPath(i.Manifest), a.manifest)
	text(blobPath(i.Config), a.config)
	for _, l := range a.Layers {
		add(blobPath(l.Digest), l.blob.reader(), l.Size)
	}
	return files, nil
}
