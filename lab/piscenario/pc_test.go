package piscenario

import (
	"testing"

	"portcullis/images/card"
	"portcullis/lab"
	"portcullis/lab/pi"
	"portcullis/lab/scenario"
)

// TestPCTrustedThroughThePi: a PC netboots from the services of the booted card
// until they trust it; what holds with the services in a namespace holds there, too:
// grants, forbidden traffic, crashes, a power cycle, a changed program. It plays all
// that `portcullis lab check --pi image` plays.
func TestPCTrustedThroughThePi(t *testing.T) {
	o := scenario.Options{Builder: &lab.Builder{Repository: builder.Repository}, Name: "t-pi", State: t.TempDir()}
	prepare(t, o.Builder)
	for _, p := range scenario.PiPlays() {
		play(t, p, o)
	}
}

// prepare makes what the plays need and, beside it, what the tests after them need: a Pi
// that boots leaves a core idle.
func prepare(t *testing.T, b *lab.Builder) {
	t.Helper()
	t.Run("prepare", func(t *testing.T) {
		t.Run("a card with the PC's image", func(t *testing.T) {
			t.Parallel()
			if _, err := b.BuildPi(t.Context(), false, builder.Say); err != nil {
				t.Fatal(err)
			}
		})
		t.Run("images and suspended Pis", func(t *testing.T) {
			t.Parallel()
			image(t, pi.Variant{Model: card.ModelPi4})
			image(t, pi.Variant{Profile: card.ProfileRelease})
			image(t, pi.Variant{ZymbitDebs: vendorDebs(t)})
			runningPi(t)
			provisionedBy(t, pi.AAVMF)
		})
	})
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
