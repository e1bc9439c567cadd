package httpboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/internal/event"
	"portcullis/pxe/artefact/artefacttest"
	"portcullis/pxe/ledger"
	"portcullis/pxe/session"
	"portcullis/pxe/session/sessiontest"
)

type bench struct {
	t        testing.TB
	sessions *sessiontest.Sessions
	image    *artefacttest.Image
	address  string
	path     string // of the ledger
	events   *bytes.Buffer
	stop     func()
	server   *Server
}

func newBench(t testing.TB, f session.Firmware) *bench {
	t.Helper()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "ledger"), events: &bytes.Buffer{}}
	b.sessions, b.image = sessiontest.New(t, f)
	l, _, err := ledger.Open(b.path, time.Now, func(ledger.Entry) {})
	if err != nil {
		t.Fatal(err)
	}
	in, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.address = in.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := New(Config{
		Client: netip.MustParseAddr("127.0.0.1"), Base: "http://" + b.address, Sessions: b.sessions, Ledger: l,
		Events: event.NewJSON(b.events, "pxed", time.Now), Now: time.Now,
	})
	b.server = s
	go func() { done <- s.Serve(ctx, in) }()
	b.stop = func() { // ends the server, so that ledger and events are complete
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
		l.Close()
	}
	t.Cleanup(b.stop)
	return b
}

func (b *bench) do(method, path string, header ...string) (*http.Response, []byte, error) {
	b.t.Helper()
	r, err := http.NewRequest(method, "http://"+b.address+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// entries reads the ledger of a server that has ended.
func (b *bench) entries(kind string) []ledger.Entry {
	b.t.Helper()
	b.stop()
	var all []ledger.Entry
	if _, err := ledger.Read(b.path, func(l ledger.Line) error {
		if l.Kind == kind {
			all = append(all, l.Entry)
		}
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	return all
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestHeadThenGetAsUEFIDoes(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	want := b.image.Content[manifest.UKI]
	path := Path(sessiontest.ID, manifest.UKI)
	head, body, err := b.do(http.MethodHead, path)
	if err != nil || len(body) != 0 || head.ContentLength != int64(len(want)) {
		t.Fatalf("HEAD: %v, %d bytes, %v", head, len(body), err)
	}
	if sent, _ := b.sessions.Told(); sent != 0 {
		t.Errorf("a HEAD counts as %d bytes", sent)
	}
	get, body, err := b.do(http.MethodGet, path)
	if err != nil || !bytes.Equal(body, want) || get.ContentLength != int64(len(want)) {
		t.Fatalf("GET: %v, %d bytes, %v", get, len(body), err)
	}
	for _, r := range []*http.Response{head, get} {
		if r.StatusCode != 200 || r.Header.Get("ETag") != `"`+digest(want)+`"` || r.Header.Get("Accept-Ranges") != "bytes" ||
			r.Header.Get("Content-Type") != "application/efi" {
			t.Errorf("%s: %v", r.Status, r.Header)
		}
	}
	b.stop() // the last piece is with us before the server has counted it
	if sent, _ := b.sessions.Told(); sent != int64(len(want)) {
		t.Errorf("%d bytes were reported", sent)
	}
}

func TestRanges(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	want := b.image.Content[manifest.Root]
	size := len(want)
	path := Path(sessiontest.ID, manifest.Root)
	tag := `"` + digest(want) + `"`
	tests := []struct {
		header   []string
		status   int
		from, to int // of the body
	}{
		{[]string{"Range", "bytes=0-0"}, 206, 0, 1},
		{[]string{"Range", "bytes=100-"}, 206, 100, size},
		{[]string{"Range", "bytes=1048575-1048576"}, 206, 1048575, 1048577},
		{[]string{"Range", "bytes=-10"}, 206, size - 10, size},
		{[]string{"Range", "bytes=-99999999999"}, 206, 0, size},
		{[]string{"Range", "bytes=5-99999999999"}, 206, 5, size},
		{[]string{"Range", "bytes=" + strconv.Itoa(size) + "-"}, 416, 0, 0},
		{[]string{"Range", "bytes=-0"}, 416, 0, 0},
		{[]string{"Range", "bytes=0-1,3-4"}, 416, 0, 0},
		{[]string{"Range", "bytes=0-1", "Range", "bytes=3-4"}, 416, 0, 0},
		{[]string{"Range", "bytes=9-5"}, 200, 0, size},
		{[]string{"Range", "lines=1-2"}, 200, 0, size},
		{[]string{"Range", "bytes=a-b"}, 200, 0, size},
		{[]string{"Range", "bytes=100-", "If-Range", tag}, 206, 100, size},
		{[]string{"Range", "bytes=100-", "If-Range", `"another"`}, 200, 0, size},
		{[]string{"Range", "bytes=100-", "If-Range", "W/" + tag}, 200, 0, size},
		{[]string{"Range", "bytes=100-", "If-Range", "Wed, 21 Oct 2026 07:28:00 GMT"}, 200, 0, size},
	}
	for _, tt := range tests {
		resp, body, err := b.do(http.MethodGet, path, tt.header...)
		if err != nil || resp.StatusCode != tt.status || !bytes.Equal(body, want[tt.from:tt.to]) {
			t.Errorf("%q: %v, %d bytes, %v", tt.header, resp, len(body), err)
			continue
		}
		wantRange := ""
		switch tt.status {
		case 206:
			wantRange = fmt.Sprintf("bytes %d-%d/%d", tt.from, tt.to-1, size)
		case 416:
			wantRange = fmt.Sprintf("bytes */%d", size)
		}
		if got := resp.Header.Get("Content-Range"); got != wantRange {
			t.Errorf("%q: Content-Range %q", tt.header, got)
		}
	}
}

func TestNothingElseIsServed(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	id := sessiontest.ID
	for _, path := range []string{
		"/", "/b/", "/b/" + id, "/b/" + id + "/", "/b/" + id + "/hpc.efi/", "/b/" + id + "//hpc.efi", "/b/" + id + "/../" + id + "/hpc.efi",
		"/b/" + id + "/%68pc.efi%00", "/b/" + id + "/hpc.efi?x=1", "/b/" + strings.ToUpper(id) + "/hpc.efi", "/b/" + id[:25] + "/hpc.efi",
		"/b/" + strings.Repeat("b", 26) + "/hpc.efi", "/b/" + id + "/vmlinuz", "/b/" + id + "/boot.ipxe", "/b/" + id + "/trust.json",
		"/b/" + id + "/..%2f..%2fetc%2fpasswd", "/etc/passwd", "/b/" + id + "/hpc%2eefi%2f",
	} {
		resp, body, err := b.do(http.MethodGet, path)
		if err != nil || resp.StatusCode != 404 || len(body) != 0 {
			t.Errorf("%s: %v, %q, %v", path, resp, body, err)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"} {
		if resp, body, err := b.do(method, Path(id, manifest.UKI)); err != nil || resp.StatusCode != 405 || len(body) != 0 {
			t.Errorf("%s: %v, %q, %v", method, resp, body, err)
		}
	}
	if sent, _ := b.sessions.Told(); sent != 0 {
		t.Errorf("%d bytes were sent", sent)
	}
}

func TestScripts(t *testing.T) {
	b := newBench(t, session.IPXE)
	base := "http://" + b.address + "/b/" + sessiontest.ID + "/"
	resp, body, err := b.do(http.MethodGet, Path(sessiontest.ID, session.Script))
	if want := "#!ipxe\nkernel --name= " + base + "hpc.efi\nboot\n"; err != nil || resp.StatusCode != 200 || string(body) != want {
		t.Errorf("%q, %v", body, err)
	}
	b = newBench(t, session.BIOS)
	base = "http://" + b.address + "/b/" + sessiontest.ID + "/"
	_, body, err = b.do(http.MethodGet, Path(sessiontest.ID, session.Script))
	want := "#!ipxe\nkernel " + base + "vmlinuz " + b.sessions.Image.Manifest.Cmdline + " initrd=initrd\ninitrd " + base + "initrd\nboot\n"
	if err != nil || string(body) != want {
		t.Errorf("%q, %v", body, err)
	}
	all := b.entries(ledger.KindResponse)
	if len(all) != 1 || all[0].Artefact != session.Script || all[0].SHA256 != digest(body) {
		t.Errorf("the script is not in the ledger: %+v", all)
	}
}

func TestInvariant02_ChangedByteCutsTheConnectionAndVoidsTheSession(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	changed := append([]byte(nil), b.image.Content[manifest.UKI]...)
	changed[2<<20+77] ^= 1
	b.sessions.Image = b.sessions.Image.WithSource(manifest.UKI, bytes.NewReader(changed))
	resp, body, err := b.do(http.MethodGet, Path(sessiontest.ID, manifest.UKI))
	if err == nil {
		t.Fatalf("the whole body came: %v", resp)
	}
	if !bytes.Equal(body, changed[:len(body)]) || len(body) > 2<<20 {
		t.Errorf("%d bytes came, only the two chunks before may", len(body))
	}
	if _, voided := b.sessions.Told(); voided != session.VoidArtefact {
		t.Errorf("void for %q", voided)
	}
	if resp, _, err := b.do(http.MethodGet, Path(sessiontest.ID, manifest.Root)); err != nil || resp.StatusCode != 404 {
		t.Errorf("the void session is served: %v, %v", resp, err)
	}
	all := b.entries(ledger.KindResponse)
	if len(all) != 1 || all[0].Result != ledger.Cut+":"+manifest.ReasonArtefact || all[0].Length != int64(len(body)) {
		t.Errorf("%+v", all)
	}
	if !strings.Contains(b.events.String(), `"event":"artefact.refused"`) {
		t.Error("no event")
	}
}

func TestInvariant03_LedgerHoldsWhatTheClientGot(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	got := map[int64]string{} // by offset
	for i, r := range []string{"", "bytes=0-99", "bytes=1048570-2097160", "bytes=-1"} {
		_, body, err := b.do(http.MethodGet, Path(sessiontest.ID, manifest.Root), "Range", r)
		if err != nil {
			t.Fatal(err)
		}
		got[[]int64{-1, 0, 1048570, int64(len(b.image.Content[manifest.Root]) - 1)}[i]] = digest(body)
	}
	responses := b.entries(ledger.KindResponse)
	pieces := map[uint64][]byte{}
	for _, e := range b.entries(ledger.KindPiece) {
		chunk := b.image.Content[e.Artefact][e.Offset : e.Offset+e.Length]
		if digest(chunk) != e.SHA256 {
			t.Errorf("piece %+v does not match", e)
		}
		pieces[e.ID] = append(pieces[e.ID], chunk...)
	}
	if len(responses) != len(got) {
		t.Errorf("%d responses", len(responses))
	}
	for _, e := range responses {
		at := e.Offset
		if e.Length == int64(len(b.image.Content[manifest.Root])) {
			at = -1
		}
		if e.SHA256 != got[at] || e.SHA256 != digest(pieces[e.ID]) || e.Result != ledger.Complete || e.Session != sessiontest.ID ||
			e.Manifest != b.sessions.Image.Manifest.Fingerprint() || !strings.HasPrefix(e.Client, "127.0.0.1:") {
			t.Errorf("%+v", e)
		}
	}
}

func TestSessionThatClosesCutsTheConnection(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	b.sessions.CloseAfter(2<<20, session.ReasonSuperseded)
	_, body, err := b.do(http.MethodGet, Path(sessiontest.ID, manifest.Root))
	if err == nil || len(body) > 2<<20 {
		t.Errorf("%d bytes came after the session had closed, %v", len(body), err)
	}
	all := b.entries(ledger.KindResponse)
	if len(all) != 1 || all[0].Result != ledger.Cut+":"+session.ReasonSuperseded || all[0].Length != 2<<20 {
		t.Errorf("%+v", all)
	}
}
