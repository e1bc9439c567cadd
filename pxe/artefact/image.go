// Package artefact loads the PC's signed image into sealed memory and hands out
// its bytes chunk by chunk, each checked against the manifest again as it leaves.
// The transports read nothing but what comes out of here: no name that came over
// the wire ever reaches the filesystem.
package artefact

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"portcullis/images/manifest"
	"portcullis/internal/sealed"
)

// Reasons of this package beside those of images/manifest.
const (
	ReasonUnreadable = "image-unreadable" // a file is missing, not regular or cannot be read
	ReasonChanged    = "image-changed"    // a file changed while it was loaded
	ReasonLab        = "image-lab-channel"
)

// Error is a refused image.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Reason + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Reason returns the typed reason of a refusal by this package or by images/manifest.
func Reason(err error) string {
	var own *Error
	var theirs *manifest.Error
	switch {
	case errors.As(err, &own):
		return own.Reason
	case errors.As(err, &theirs):
		return theirs.Reason
	}
	return ReasonUnreadable
}

// Image is one verified image in sealed memory. It is safe for concurrent use.
type Image struct {
	Manifest *manifest.Verified
	Envelope []byte // as signed; never changed
	Loaded   time.Time
	content  map[string]content
}

type content struct {
	artefact manifest.Artefact
	bytes    source
}

// source is what a sealed.File is, or in tests memory that changes.
type source interface {
	io.ReaderAt
	io.Closer
}

var _ source = (*sealed.File)(nil)

// Artefact returns the description of the artefact of that name.
func (i *Image) Artefact(name string) (manifest.Artefact, bool) {
	c, ok := i.content[name]
	return c.artefact, ok
}

// Close gives the memory back; reads that are under way fail.
func (i *Image) Close() error {
	var errs []error
	for _, c := range i.content {
		errs = append(errs, c.bytes.Close())
	}
	return errors.Join(errs...)
}

// Chunks reads bytes [offset, offset+length) of the artefact called name and
// hands them to send piece by piece, at most manifest.ChunkSize each. Every
// chunk that the range touches is read whole and compared with the manifest
// before a byte of it is handed out. A chunk that differs is a *manifest.Error;
// any error of send ends the walk and is returned as it is.
func (i *Image) Chunks(name string, offset, length int64, send func(piece []byte) error) error {
	r, err := i.Reader(name, offset, length)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		piece, err := r.Next(manifest.ChunkSize)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(piece); err != nil {
			return err
		}
	}
}

// Bytes is for the generated and the small: a content that is not an artefact
// but is served by the same code path, for instance a boot script.
func Bytes(name string, b []byte) (*Image, error) {
	described, err := manifest.Describe(name, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", name, err)
	}
	return &Image{content: map[string]content{name: {described, unclosed{bytes.NewReader(b)}}}}, nil
}
