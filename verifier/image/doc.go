// Package image takes container images apart, as OCI layouts or as docker save
// writes them, without believing anything in them: every blob is opened once, held
// against its digest packed and unpacked, and every name in every layer is looked
// at. What comes out has one form, made from what was read.
//
// It starts no engine and asks for no permission: the guard does, with the digests
// from here. A file that is in order here can still be one that nobody approved.
package image

import (
	"errors"
	"fmt"
)

// Reasons why an image is refused.
const (
	ReasonFormat    = "image-format"     // neither an OCI layout nor an archive of docker save, or a part of it is malformed
	ReasonBlob      = "image-blob"       // a blob is not there, or not what its digest says
	ReasonAmbiguous = "image-ambiguous"  // none or several images in one archive
	ReasonPlatform  = "image-platform"   // for another machine
	ReasonMediaType = "image-media-type" // a kind of blob that is not taken, or a blob that is not of its kind
	ReasonConfig    = "image-config"     // the layers are not those of the configuration
	ReasonTooLarge  = "image-too-large"  // over a limit of size or number
	ReasonTar       = "tar-malformed"    // a tar archive that cannot be read, or with something behind its end
	ReasonName      = "tar-name"         // a name that is absolute, leads out of the root, or is not clean
	ReasonDuplicate = "tar-duplicate"    // a name that is there twice
	ReasonLink      = "tar-link"         // a link out of the root, to nothing, or a name that leads through a link
	ReasonType      = "tar-type"         // a device, a pipe, a sparse file, an owner that no file can have, or what an image does not need
)

// Error is a refusal with its typed reason.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Reason returns the typed reason in err, "" where there is none.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// Limits bound what an image may cost. The zero value has the defaults.
type Limits struct {
	Packed   int64 // bytes of all blobs; 8 GiB
	Unpacked int64 // bytes of all layers unpacked; 16 GiB
	Ratio    int64 // unpacked bytes for each packed one, above 64 MiB; 200
	Entries  int   // names in all layers; 200000
	Implied  int   // directories of one layer that names lie in and that are no names themselves; 50000
	Text     int64 // bytes of one layer's names, where they lead, and attributes; 32 MiB
}

func (l Limits) filled() Limits {
	set := func(v *int64, to int64) {
		if *v == 0 {
			*v = to
		}
	}
	set(&l.Packed, 8<<30)
	set(&l.Unpacked, 16<<30)
	set(&l.Ratio, 200)
	set(&l.Text, 32<<20)
	if l.Entries == 0 {
		l.Entries = 200000
	}
	if l.Implied == 0 {
		l.Implied = 50000
	}
	return l
}

// Options of Open and Read.
type Options struct {
	Limits   Limits
	Platform string                  // "linux/arm64"; "" = any, if there is only one
	Progress func(done, total int64) // packed bytes; called about every MiB; may be nil
	// Layer is called with each layer when all of it was read, under the digests of what was read: the lowest
	// first, or of a stream in the order in which they come, also with what turns out to be no layer of
	// the image afterwards, or with one of them twice. Its Tree is not held any longer then;
	// without Layer all of them stay.
	Layer func(*Layer) error
}
