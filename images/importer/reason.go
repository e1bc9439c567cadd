package importer

import (
	"errors"
	"fmt"

	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/manifest"
	"portcullis/images/update"
)

// Reasons why something on a stick is not taken, beside those of the image, the
// update and the file system.
const (
	ReasonVolume = "import-volume"    // the device is not a FAT file system labelled PCIMPORT
	ReasonEmpty  = "import-empty"     // neither an image nor an update is on it
	ReasonLab    = "import-lab-image" // an image with a root command channel, which the configuration does not allow
	ReasonSpace  = "import-space"     // it does not fit into the data volume
	ReasonStore  = "import-store"     // the data volume cannot be written
	ReasonTried  = "import-tried"     // this update was taken from a stick before and did not stay
)

// Error is a refusal with its typed reason.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Reason + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// ReasonOf names why err refused, by the reason of whoever refused.
func ReasonOf(err error) string {
	var (
		ours  *Error
		image *manifest.Error
		file  *fat.Error
		b     *bundle.Error
		u     *update.Error
		c     *card.Error
	)
	switch {
	case errors.As(err, &ours):
		return ours.Reason
	case errors.As(err, &image):
		return image.Reason
	case errors.As(err, &b):
		return b.Reason
	case errors.As(err, &u):
		return u.Reason
	case errors.As(err, &c):
		return c.Reason
	case errors.As(err, &file):
		return file.Reason
	}
	return ReasonStore
}
