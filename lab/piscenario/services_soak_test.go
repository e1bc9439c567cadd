//go:build soak

package piscenario

import (
	"testing"

	"portcullis/lab"
	"portcullis/lab/scenario"
)

// TestInvariant07_ServicesAreContainers: a card whose image holds pxed and attestd as
// approved container images; a PC boots through them, pxed rests and comes back, and ends
// when its image is revoked.
func TestInvariant07_ServicesAreContainers(t *testing.T) {
	play(t, scenario.PiContained(), scenario.Options{Builder: &lab.Builder{Repository: builder.Repository}, Name: "t-pisvc", State: t.TempDir()})
}
