package approval

import (
	"regexp"
	"slices"
)

// MaxLayers is how many layers an image may have: overlayfs takes no more.
const MaxLayers = 127

// Image is what an image is: its manifest, its configuration and the layers as
// they are unpacked. Engines call an image by the first or the second, depending
// on their store; all three together name it on each of them.
type Image struct {
	Manifest string   `json:"manifest"` // "sha256:" and 64 hex digits, of the OCI or Docker manifest
	Config   string   `json:"config"`   // of the configuration
	Layers   []string `json:"layers"`   // diffIDs, the lowest first; 1 to MaxLayers
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// IsDigest tells whether s is a SHA-256 digest as images have it.
func IsDigest(s string) bool { return digestForm.MatchString(s) }

// Equal tells whether both are the same image: all digests, in their order.
func (i Image) Equal(o Image) bool {
	return i.Manifest == o.Manifest && i.Config == o.Config && slices.Equal(i.Layers, o.Layers)
}

func (i Image) validate() error {
	if !IsDigest(i.Manifest) || !IsDigest(i.Config) {
		return refuse(ReasonMalformed, "image: manifest %.80q, config %.80q: not sha256 digests", i.Manifest, i.Config)
	}
	if n := len(i.Layers); n == 0 || n > MaxLayers {
		return refuse(ReasonMalformed, "image: %d layers, 1 to %d are possible", n, MaxLayers)
	}
	for _, l := range i.Layers {
		if !IsDigest(l) {
			return refuse(ReasonMalformed, "image: layer %.80q is no sha256 digest", l)
		}
	}
	return nil
}
