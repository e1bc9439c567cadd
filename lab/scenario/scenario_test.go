package scenario

import (
	"context"
	"os"
	"testing"

	"portcullis/lab"
)

// TestScenarios plays what `portcullis lab check` plays, but for the long plays.
func TestScenarios(t *testing.T) {
	builder := &lab.Builder{Repository: "../.."}
	for _, p := range Plays() {
		if p.Long {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			name := "t-" + p.Name
			o := Options{Builder: builder, Name: name, State: t.TempDir()}
			if testing.Verbose() {
				o.Events = (&lab.Printer{Out: os.Stderr}).Print
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			for _, r := range p.Run(ctx, o, nil) {
				t.Run(r.Scene, func(t *testing.T) {
					t.Logf("%s: %.1f s; %s", r.Title, r.Seconds, r.Detail)
					if !r.OK {
						t.Error("the claim does not hold")
					}
				})
			}
		})
	}
}
