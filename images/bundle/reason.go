package bundle

import (
	"errors"
	"fmt"

	"portcullis/images/manifest"
)

// Reasons why a bundle is refused.
const (
	ReasonSignature = "bundle-signature" // not signed by enough release keys
	ReasonMalformed = "bundle-malformed" // no bundle, or a value out of its range
	ReasonSize      = "bundle-size"      // something is larger than it may be
	ReasonTruncated = "bundle-truncated" // the file ends early
	ReasonDiffers   = "bundle-differs"   // a piece is not what the manifest describes
	ReasonModel     = "bundle-model"     // for another model
	ReasonProfile   = "bundle-profile"   // a dev bundle for a release card, or the reverse
	ReasonOld       = "bundle-old"       // not newer than the release in use
)

// Error is a refusal with its typed reason. Detail is for people.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// fromManifest gives a refusal of the envelope the bundle's own reason.
func fromManifest(err error) error {
	var e *manifest.Error
	if !errors.As(err, &e) {
		return err
	}
	reason, ok := map[string]string{
		manifest.ReasonSignature: ReasonSignature, manifest.ReasonThreshold: ReasonSignature,
		manifest.ReasonSize: ReasonSize, manifest.ReasonArtefact: ReasonDiffers,
	}[e.Reason]
	if !ok {
		reason = ReasonMalformed
	}
	return &Error{Reason: reason, Detail: e.Detail}
}
