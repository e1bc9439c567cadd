package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/internal/cli"
	"portcullis/internal/rpc"
	"portcullis/verifier/approval"
	"portcullis/verifier/fetch"
	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
)

// loadRig is an approvalsRig with a guard that reads images and loads none.
type loadRig struct {
	*approvalsRig
	got []approval.Image
}

func newLoadRig(t *testing.T) *loadRig {
	t.Helper()
	r := &loadRig{approvalsRig: newApprovalsRig(t)}
	l, err := rpc.Listen(filepath.Join(r.runDir, rpc.GuardSocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		a, err := image.Read(q.Context(), q.Body, t.TempDir(), image.Options{})
		if err != nil {
			w.WriteHeader(http.StatusForbidden)
			json.NewEncoder(w).Encode(map[string]string{"message": "portcullis: " + image.Reason(err) + ": " + err.Error()})
			return
		}
		defer a.Close()
		r.got = append(r.got, a.Image())
		json.NewEncoder(w).Encode(map[string]string{"stream": "Loaded image: portcullis/approved:hello-1\n"})
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return r
}

func (r *loadRig) load(want int, text string, args ...string) string {
	r.t.Helper()
	var b bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{loadCommand()}}
	args = append([]string{"load", "--run-dir", r.runDir, "--quarantine", r.path("quarantine")}, args...)
	code := cli.Run(context.Background(), root, &cli.IO{Out: &b, Err: &b}, args)
	if code != want || !strings.Contains(b.String(), text) {
		r.t.Errorf("%v: exit %d, want %d with %q\n%s", args, code, want, text, b.String())
	}
	return b.String()
}

// approve puts the image of a file into force.
func (r *loadRig) approve(file, name string) {
	r.t.Helper()
	r.run(0, "approval sha256:", "approve", file, "--name", name, "--version", "1", "--purpose", "task", "--profile", "strict",
		"--key", r.path("one"), "--key", r.path("two"), "--out", r.path(name+".approval"))
	r.run(0, "entry", "approvals", "add", "--run-dir", r.runDir, r.path(name+".approval"))
	r.until("the witness's signature", func() bool { return r.log.Approvals()[0].Refused == nil })
}

func TestLoad(t *testing.T) {
	r := newLoadRig(t)
	files := imagetest.OCI(t, imagetest.OneFile(t, "probe", "good"))
	tar := files.File(t)
	other := imagetest.OCI(t, imagetest.OneFile(t, "probe", "other")).File(t)
	asked := 0
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked++
		if hex, ok := strings.CutPrefix(q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:], "sha256:"); ok {
			http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(files["blobs/sha256/"+hex]))
			return
		}
		http.ServeFile(w, q, map[string]string{"/good.tar": tar, "/other.tar": other}[q.URL.Path])
	}))
	defer web.Close()
	a, err := image.Open(t.Context(), tar, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := a.Image()
	a.Close()
	reference := strings.TrimPrefix(web.URL, "http://") + "/team/hello@" + i.Manifest

	// Nothing is asked for that no approval names.
	r.load(1, "refused: "+approval.ReasonUnapproved, tar)
	r.load(1, approval.ReasonUnapproved, web.URL+"/good.tar", "--digest", i.Manifest)
	r.load(1, approval.ReasonUnapproved, reference, "--plain-http")
	if asked != 0 || len(r.got) != 0 {
		t.Fatalf("%d requests, %d images for the guard", asked, len(r.got))
	}

	r.approve(tar, "hello")
	for _, args := range [][]string{
		{tar}, {files.Dir(t)}, {tar, "--digest", i.Config}, {web.URL + "/good.tar?token=secret", "--digest", i.Manifest}, {web.URL + "/good.tar", "--digest", i.Config},
		{reference, "--plain-http"},
	} {
		n := len(r.got)
		if out := r.load(0, "loaded as portcullis/approved:hello-1", args...); strings.Contains(out, "secret") {
			t.Errorf("a secret is shown: %s", out)
		}
		if len(r.got) != n+1 || r.got[n].Config != i.Config {
			t.Errorf("%v: %v", args, r.got[n:])
		}
	}
	if left, _ := filepath.Glob(r.path("quarantine/*/*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}

	// A stick with one approved image and one that is not.
	stick := t.TempDir()
	for name, from := range map[string]string{"good.tar": tar, "other.tar": other} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(stick, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out := r.load(0, "good.tar: loaded", stick)
	if !strings.Contains(out, "other.tar: refused: "+approval.ReasonUnapproved) {
		t.Error(out)
	}

	// Another image than the one that was asked for.
	out = r.load(1, fetch.ReasonDigest, web.URL+"/other.tar", "--digest", i.Manifest, "--json")
	var report loadReport
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &report); err != nil || report.Loaded || report.Reason != fetch.ReasonDigest {
		t.Errorf("%v: %s", err, out)
	}

	r.load(2, "--digest is needed", web.URL+"/good.tar")
	r.load(2, "two digests", reference, "--digest", i.Config)
	r.load(2, "takes one source")
	r.load(2, "64 hex digits", tar, "--digest", "sha256:x")
	r.load(1, fetch.ReasonNone, r.path("nothing"))
	r.load(1, fetch.ReasonReference, "hello@"+i.Manifest)
}

// What a server put together from two files is fetched once more.
func TestLoadOfTwoFilesInOne(t *testing.T) {
	r := newLoadRig(t)
	good := imagetest.OCI(t, imagetest.OneFile(t, "probe", strings.Repeat("good", 300000)))
	tar := good.File(t)
	b, err := os.ReadFile(tar)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(b)
	for i := 200000; i < 300000; i++ {
		bad[i] ^= 1
	}
	n := 0
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("ETag", `"always-the-same"`)
		if n++; n == 1 {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(bad[:600000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(b))
	}))
	defer web.Close()
	a, err := image.Open(t.Context(), tar, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	manifest := a.Image().Manifest
	a.Close()
	r.approve(tar, "hello")
	// The first run is given up; what it had is continued by the second, with the good half.
	q, err := fetch.OpenQuarantine(r.path("quarantine"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t, 400*time.Millisecond)
	if _, err := fetch.New(fetch.Options{Pause: time.Hour}).URL(ctx, q, web.URL+"/x.tar"); err == nil {
		t.Fatal("fetched")
	}
	q.Close()
	out := r.load(0, "loaded as", web.URL+"/x.tar", "--digest", manifest)
	if !strings.Contains(out, "once more from the beginning") || n != 3 {
		t.Errorf("%d requests: %s", n, out)
	}
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
