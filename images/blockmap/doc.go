// Package blockmap describes a disk image for those who write it to a card: which
// ranges hold data, the digest of each, and that everything between them is zero.
// It is pure. The image builder makes maps, flash and the lab read them.
//
// It replaces bmaptool and a detached signature: the map is signed with the
// release keys, and through its digests so is every byte of the image.
package blockmap

import (
	"fmt"
)

const (
	// Schema is the only schema.
	Schema = "portcullis/blockmap/v1"
	// PayloadType is the DSSE payload type of a map.
	PayloadType = "application/vnd.portcullis.blockmap+json"
	// Block is the grain in bytes: a whole aligned block of zeros belongs to no range.
	Block = 1 << 20
	// MaxRange is the longest range in bytes. It is what a reader holds in memory,
	// and it never crosses a multiple of itself.
	MaxRange = 4 << 20
	// MaxSize is the largest image in bytes.
	MaxSize = 64 << 30
	// MaxEncoded is the largest map that is read, in bytes of JSON.
	MaxEncoded = 3 << 20
	// MaxTitle is the length of a title in bytes.
	MaxTitle = 100
)

// Reasons why a map or an image is refused. A wrong signature has a reason of images/manifest.
const (
	ReasonMalformed = "blockmap-malformed" // not the one strict encoding, or ranges that cannot be
	ReasonDiffers   = "blockmap-differs"   // the image is not the one that the map describes
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
