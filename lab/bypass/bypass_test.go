package bypass

import (
	"os"
	"testing"

	"portcullis/lab/dockerd"
)

// TestInvariant07_WaysRoundTheGuard: every named way is refused, and in the log.
func TestInvariant07_WaysRoundTheGuard(t *testing.T) {
	r, err := Start(t.Context(), os.Getenv(dockerd.KindEnv))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	all := Attacks()
	names := map[string]bool{}
	for _, a := range all {
		if names[a.Name] {
			t.Errorf("%s is there twice", a.Name)
		}
		names[a.Name] = true
	}
	if len(all) < 60 {
		t.Errorf("only %d ways", len(all))
	}
	results, err := r.Run(t.Context(), all, func(x Result) {
		if x.Closed() {
			t.Log(x)
		} else {
			t.Error(x)
		}
	})
	if err != nil {
		t.Errorf("%v\n%s", err, r.events)
	}
	if len(results) != len(all) {
		t.Errorf("%d results of %d", len(results), len(all))
	}
}
