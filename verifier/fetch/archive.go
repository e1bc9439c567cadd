package fetch

import (
	"context"
	"errors"
	"io"
	"net/url"
	"path/filepath"

	"portcullis/verifier/image"
)

// Image is one image that was found or fetched. Its files stay open until Close.
type Image struct {
	*image.Outline
	Name    string // where it lies, for people
	Size    int64  // of what Open gives, bytes
	Resumed bool   // a part of it was there from before
	open    func() (io.ReadCloser, error)
	close   func() error
}

// Open gives the image as one archive, unread, for the guard.
func (i *Image) Open() (io.ReadCloser, error) { return i.open() }

// Close lets go of its files.
func (i *Image) Close() error { return i.close() }

// URL fetches an archive from a web server into the quarantine.
func (f *Fetcher) URL(ctx context.Context, q *Quarantine, address string) (*Image, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "" {
		return nil, refuse(ReasonReference, "%.100q is no http or https address", address)
	}
	if u.User != nil {
		return nil, refuse(ReasonReference, "a name and a password in the address: everybody on this machine sees them")
	}
	p, err := openPart(filepath.Join(q.dir, "archive.part"), u.String(), false)
	if err != nil {
		return nil, err
	}
	had := p.size
	err = f.fill(ctx, p, want{size: -1, most: f.opt.MaxBytes, stage: "fetch", total: -1})
	if err == nil {
		err = storage(p.file.Sync())
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	i, err := inTar(p.file, p.size, f.opt.Platform, p.Close)
	if err != nil {
		return nil, errors.Join(err, p.discard())
	}
	i.Name, i.Resumed = shown(u), had > 0
	return i, nil
}

// inTar is the image in a tar archive.
func inTar(r io.ReaderAt, size int64, platform string, done func() error) (*Image, error) {
	o, err := image.OutlineTar(r, size, platform)
	if err != nil {
		return nil, err
	}
	return &Image{Outline: o, Size: size, close: done,
		open: func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(r, 0, size)), nil }}, nil
}

// inFiles is the image in files of a layout.
func inFiles(open image.OpenFile, platform string, done func() error) (*Image, error) {
	o, err := image.OutlineFiles(open, platform)
	if err != nil {
		return nil, err
	}
	i := &Image{Outline: o, close: done}
	// Once for its size, which looks for every file, too.
	a, size, err := o.Tar()
	if err != nil {
		return nil, err
	}
	i.Size = size
	i.open = func() (io.ReadCloser, error) {
		a, _, err := o.Tar()
		return a, err
	}
	return i, a.Close()
}
