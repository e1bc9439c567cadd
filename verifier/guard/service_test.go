package guard

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"testing"

	"portcullis/images/service"
	"portcullis/verifier/image"
)

// A service of the Pi as an image: built, approved, loaded, and run with no more than
// its profile.
func TestServiceAsAnImage(t *testing.T) {
	r := newRig(t)
	built, err := service.Build(t.Context(), service.Options{Names: []string{"attestd"}, Arch: runtime.GOARCH, OutDir: t.TempDir(), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(built[0].File)
	if err != nil {
		t.Fatal(err)
	}
	read, err := image.Open(t.Context(), built[0].File, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := read.Image()
	read.Close()
	if out, err := r.docker(t, bytes.NewReader(archive), "load"); err == nil {
		t.Fatalf("loaded before it was approved: %s", out)
	}
	r.approvals.approveImage(t, i, "service/attestd", plain)
	out, err := r.docker(t, bytes.NewReader(archive), "load")
	name, ok := strings.CutPrefix(strings.TrimSpace(out), "Loaded image: ")
	if err != nil || !ok {
		t.Fatalf("%v: %s", err, out)
	}
	out, err = r.docker(t, nil, "run", "--rm", "--label", PurposeLabel+"=service/attestd", name, "-h")
	if err != nil || !strings.Contains(out, "/usr/bin/attestd") || !strings.Contains(out, "-init-key") {
		t.Errorf("%v: %s", err, out)
	}
	// For another purpose it does not start.
	if out, err := r.docker(t, nil, "run", "--rm", name, "-h"); err == nil || !strings.Contains(out, "approval-purpose") {
		t.Errorf("%v: %s", err, out)
	}
}
