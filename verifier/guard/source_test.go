package guard

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"portcullis/verifier/approval"
	"portcullis/verifier/fetch"
	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
)

// An image of a registry goes through the quarantine and the guard into the engine,
// and runs; one that nobody approved does not.
func TestImageFromARegistry(t *testing.T) {
	r := newRig(t)
	layer, err := tarOf(map[string][]byte{"probe": r.probe}, "probe")
	if err != nil {
		t.Fatal(err)
	}
	config := imagetest.JSON(t, map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/probe"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{imagetest.Digest(layer)}}})
	files := imagetest.Files{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	files.Blob(config)
	files.Blob(imagetest.Gzip(t, layer))
	files.Top(t, imagetest.JSON(t, map[string]any{"schemaVersion": 2, "mediaType": imagetest.ManifestType, "config": imagetest.Describe(imagetest.ConfigType, config),
		"layers": []imagetest.Descriptor{imagetest.Describe(imagetest.LayerType+"+gzip", imagetest.Gzip(t, layer))}}))
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(files["blobs/sha256/"+q.URL.Path[strings.LastIndex(q.URL.Path, ":")+1:]]))
	}))
	defer registry.Close()
	a, err := image.Open(t.Context(), files.File(t), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := a.Image()
	a.Close()
	ref, err := fetch.ParseReference(strings.TrimPrefix(registry.URL, "http://") + "/team/probe@" + i.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	q, err := fetch.OpenQuarantine(filepath.Join(t.TempDir(), "quarantine"))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	found, err := fetch.New(fetch.Options{PlainHTTP: true}).Registry(t.Context(), q, ref)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if _, err := fetch.Hand(t.Context(), r.socket, found, nil); fetch.Reason(err) != approval.ReasonUnapproved || !r.approvals.has(approval.ReasonUnapproved) {
		t.Errorf("nobody approved it: %v", err)
	}
	r.approvals.approveImage(t, i, "task", plain)
	name, err := fetch.Hand(t.Context(), r.socket, found, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := r.docker(t, nil, "run", "--rm", name, "say", "fetched"); err != nil || strings.TrimSpace(out) != "fetched" {
		t.Errorf("%v: %s", err, out)
	}
}
