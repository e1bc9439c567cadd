package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"portcullis/images/manifest"
	"portcullis/internal/cli"
	"portcullis/internal/rpc"
	"portcullis/verifier/approval"
	"portcullis/verifier/declared"
	"portcullis/verifier/image"
)

// 'image services' signs what verifierd starts: what it writes is an approval of the archive beside it.
func TestImageServicesAreApproved(t *testing.T) {
	bin, out := t.TempDir(), t.TempDir()
	program, err := os.Executable()
	if err == nil {
		err = os.Symlink(program, filepath.Join(bin, "pxed"))
	}
	if err == nil {
		_, err = manifest.GenerateKey(filepath.Join(bin, "one"))
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) error {
		return imageServicesCommand().Run(t.Context(), &cli.IO{Out: io.Discard, Err: io.Discard}, append([]string{"--service", "pxed", "--arch", runtime.GOARCH,
			"--bin", bin, "--cache", t.TempDir(), "--out", out, "--approve-key", filepath.Join(bin, "one")}, args...))
	}
	if err := run(); err == nil || !strings.Contains(err.Error(), "--version") {
		t.Errorf("without a version: %v", err)
	}
	if err := run("--version", "4"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "pxed.approval"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := approval.Peek(b)
	if err != nil {
		t.Fatal(err)
	}
	a, err := image.Open(t.Context(), filepath.Join(out, "pxed.tar"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	want, err := declared.Profile("pxed", declared.Standard)
	if err != nil {
		t.Fatal(err)
	}
	if i := a.Image(); !i.Equal(p.Approval.Image) || p.Approval.Version != 4 || p.Approval.Purpose != "service/pxed" || p.Approval.Profile.Covers(&want) != nil || len(p.KeyIDs) != 1 {
		t.Errorf("%+v", p.Approval)
	}
	profile, err := readProfile(filepath.Join(out, "pxed.json"))
	if err != nil || profile.Covers(&want) != nil {
		t.Errorf("pxed.json: %v", err)
	}
}

// Each service that runs as a container has its line, with what keeps it from running.
func TestServicesInTheStatus(t *testing.T) {
	dir := t.TempDir()
	l, err := rpc.Listen(filepath.Join(dir, rpc.VerifierSocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	list := []declared.Status{{Service: "pxed", State: declared.StateResting}, {Service: "attestd", State: declared.StateRefused, Reason: "image-revoked", Detail: "why"}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+declared.StatusPath, func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(list) })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- rpc.Serve(ctx, l, mux) }()
	defer func() { stop(); <-ended }()
	got, err := newServices(t.Context(), filepath.Join(dir, rpc.VerifierSocket))
	if err != nil || len(got) != 2 {
		t.Fatalf("%v %v", got, err)
	}
	var b bytes.Buffer
	printServices(&b, got, func(_, s string) string { return s })
	if said := b.String(); !strings.Contains(said, "service  pxed as a container: resting since ") || !strings.Contains(said, "attestd as a container: refused") || !strings.Contains(said, "image-revoked: why") {
		t.Error(said)
	}
}
