package piscenario

import (
	"testing"

	"portcullis/lab"
	"portcullis/lab/scenario"
)

// TestPCTrustedThroughThePi: a PC netboots from the services of the booted card
// until they trust it; a second claim voids its session. `portcullis lab check
// --pi image` plays all the scenes.
func TestPCTrustedThroughThePi(t *testing.T) {
	want := map[string]bool{"trusted-uefi-http": true, "second-claim": true}
	o := scenario.Options{Builder: &lab.Builder{Repository: builder.Repository}, Name: "t-pi", State: t.TempDir()}
	played := 0
	for _, p := range scenario.PiPlays() {
		for _, r := range p.Run(t.Context(), o, func(scene string) bool { return want[scene] }) {
			played++
			t.Logf("%s: %.1f s; %s", r.Title, r.Seconds, r.Detail)
			if !r.OK {
				t.Errorf("%s: the claim does not hold", r.Scene)
			}
		}
	}
	if played != len(want) {
		t.Errorf("%d scenes were played, want %d", played, len(want))
	}
}
