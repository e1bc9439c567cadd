package piscenario

import (
	"testing"

	"portcullis/lab"
	"portcullis/lab/scenario"
)

// TestPCTrustedThroughThePi: a PC netboots from the services of the booted card
// until they trust it; what holds with the services in a namespace holds there, too:
// grants, forbidden traffic, crashes, a power cycle, a changed program. It plays all
// that `portcullis lab check --pi image` plays.
func TestPCTrustedThroughThePi(t *testing.T) {
	o := scenario.Options{Builder: &lab.Builder{Repository: builder.Repository}, Name: "t-pi", State: t.TempDir()}
	for _, p := range scenario.PiPlays() {
		play(t, p, o)
	}
}

// play plays all scenes of p.
func play(t *testing.T, p scenario.Play, o scenario.Options) {
	t.Helper()
	played := p.Run(t.Context(), o, nil)
	for _, r := range played {
		t.Logf("%s: %.1f s; %s", r.Title, r.Seconds, r.Detail)
		if !r.OK {
			t.Errorf("%s: the claim does not hold", r.Scene)
		}
	}
	if len(played) != len(p.Scenes) {
		t.Errorf("%s: %d scenes were played, want %d", p.Name, len(played), len(p.Scenes))
	}
}
