package hpcinit

import (
	"strings"
	"testing"

	"portcullis/images/manifest"
)

// TestBootToInit boots a real kernel through the whole sequence.
func TestBootToInit(t *testing.T) {
	im := newTestImage(t, 8<<20)
	envelope, trust := im.sign(t)
	console := im.boot(t, trust, map[string][]byte{manifest.Envelope: envelope, manifest.Root: im.root})
	t.Log(stages(console))
	for _, want := range []string{
		"fact: pid=1",
		"fact: end=ok",
	} {
		if !strings.Contains(console, want) {
			t.Errorf("the console lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(console)
	}
}

// stages are the lines of hpc-init and of the facts program.
func stages(console string) string {
	var out []string
	for _, l := range strings.Split(console, "\n") {
		if strings.Contains(l, "portcullis: ") || strings.Contains(l, "fact: ") {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}
