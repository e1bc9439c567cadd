package witness

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/internal/translog"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return now }

// testLog is a log under a key that may have several histories.
type testLog struct {
	t      *testing.T
	signer note.Signer
	key    note.Verifier
}

func newLog(t *testing.T, name string) *testLog {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return &testLog{t, s, v}
}

// with returns the log after n entries of a history.
func (l *testLog) with(history string, n int) *translog.Reader {
	l.t.Helper()
	dir := l.t.TempDir()
	log, err := translog.Open(dir, l.signer, l.key)
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range n {
		if _, err := log.Append(fmt.Appendf(nil, "%s %d", history, i)); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		l.t.Fatal(err)
	}
	r, err := translog.NewReader(os.DirFS(dir), l.key)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func newServer(t *testing.T, dir, name string, private ed25519.PrivateKey, logs ...*testLog) (*Server, *httptest.Server) {
	t.Helper()
	var keys []note.Verifier
	for _, l := range logs {
		keys = append(keys, l.key)
	}
	s, err := NewServer(dir, name, private, keys, clock)
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, h
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func client(s *Server, h *httptest.Server) *Client {
	return &Client{URL: h.URL, Key: s.Key(), HTTP: h.Client()}
}

func TestWitnessCosignsGrowth(t *testing.T) {
	l := newLog(t, "example.com/log")
	s, h := newServer(t, t.TempDir(), "example.com/w1", newKey(t), l)
	c := client(s, h)
	for _, n := range []int{1, 2, 3, 255, 256, 257, 257, 600} {
		r := l.with("a", n)
		line, err := c.Cosign(t.Context(), r, l.key)
		if err != nil {
			t.Fatalf("%d entries: %v", n, err)
		}
		both := append(bytes.Clone(r.Checkpoint.Note), line...)
		names, err := Cosigners(both, l.key, []*Key{s.Key()})
		if err != nil || len(names) != 1 || names[0] != "example.com/w1" {
			t.Fatalf("%d entries: cosigned by %v: %v", n, names, err)
		}
		// A checkpoint with cosignatures is still one of the log.
		if _, err := translog.ParseCheckpoint(both, l.key); err != nil {
			t.Error(err)
		}
	}
	// Another client, which knows nothing of what was seen, goes on where it was.
	if _, err := client(s, h).Cosign(t.Context(), l.with("a", 601), l.key); err != nil {
		t.Error(err)
	}
	// The first one has an old idea now.
	if _, err := c.Cosign(t.Context(), l.with("a", 602), l.key); err != nil {
		t.Error(err)
	}
}

// TestAttack_WitnessSignsAnotherText: a witness whose answer goes on before its signature has signed
// something else than the checkpoint. Kept beside that, its signature would be a wrong one at the
// next start, and nothing would be permitted.
func TestAttack_WitnessSignsAnotherText(t *testing.T) {
	l := newLog(t, "example.com/log")
	r := l.with("a", 3)
	private := newKey(t)
	key, err := NewKey("example.com/w1", private.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(r.Checkpoint.Note), "\n\n")
	for between, want := range map[string]string{"": "", "and more\n": ReasonSignature} {
		signed := text + "\n"
		if between != "" {
			signed += "\n" + between
		}
		whole, err := note.Sign(&note.Note{Text: signed}, &signer{key, private, clock})
		if err != nil {
			t.Fatal(err)
		}
		answer := strings.TrimPrefix(string(whole), text+"\n\n")
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Method == http.MethodGet {
				http.NotFound(w, q)
				return
			}
			io.WriteString(w, answer)
		}))
		line, err := (&Client{URL: h.URL, Key: key, HTTP: h.Client()}).Cosign(t.Context(), r, l.key)
		h.Close()
		if Reason(err) != want {
			t.Errorf("answer %q: %q, %v", answer, line, err)
		}
		if names, cerr := Cosigners(append(bytes.Clone(r.Checkpoint.Note), line...), l.key, []*Key{key}); err == nil && (cerr != nil || len(names) != 1) {
			t.Errorf("answer %q: what was taken is signed by %v: %v", answer, names, cerr)
		}
	}
}

func TestAttack_ForkAndRollbackAreNotCosigned(t *testing.T) {
	l := newLog(t, "example.com/log")
	dir, private := t.TempDir(), newKey(t)
	s, h := newServer(t, dir, "w", private, l)
	if _, err := client(s, h).Cosign(t.Context(), l.with("a", 300), l.key); err != nil {
		t.Fatal(err)
	}
	for round := range 2 { // the second with a witness that was started again
		c := client(s, h)
		if _, err := c.Cosign(t.Context(), l.with("b", 400), l.key); Reason(err) != ReasonProof {
			t.Errorf("round %d: another history: %v", round, err)
		}
		if _, err := c.Cosign(t.Context(), l.with("b", 300), l.key); Reason(err) != ReasonProof {
			t.Errorf("round %d: another history of the same size: %v", round, err)
		}
		_, err := c.Cosign(t.Context(), l.with("a", 299), l.key)
		if e, ok := err.(*Error); !ok || e.Reason != ReasonConflict || e.Size != 300 {
			t.Errorf("round %d: an old copy: %v", round, err)
		}
		s, h = newServer(t, dir, "w", private, l)
	}
	if _, err := client(s, h).Cosign(t.Context(), l.with("a", 301), l.key); err != nil {
		t.Error(err)
	}
}

// Requests that no client of ours would send.
func TestAttack_RequestsBuiltByHand(t *testing.T) {
	l, stranger := newLog(t, "example.com/log"), newLog(t, "example.com/other")
	impostor := newLog(t, "example.com/log") // the same name, another key
	_, h := newServer(t, t.TempDir(), "w", newKey(t), l)
	post := func(body []byte) (int, string, string) {
		t.Helper()
		a, err := h.Client().Post(h.URL+"/add-checkpoint", "text/plain", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		b, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		return a.StatusCode, string(b), a.Header.Get("Content-Type")
	}
	at := func(log *testLog, history string, n int, old int64, proof ...[]byte) []byte {
		r := request{old, proof, log.with(history, n).Checkpoint.Note}
		return r.encode()
	}
	consistency := func(from, to int) [][]byte {
		p, err := l.with("a", to).Consistency(l.with("a", from).Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	junk := make([]byte, 32)
	if status, body, _ := post(at(l, "a", 10, 0)); status != http.StatusOK || !strings.HasPrefix(body, "— w ") || !strings.HasSuffix(body, "\n") {
		t.Fatalf("first: %d %q", status, body)
	}
	good := at(l, "a", 20, 10, consistency(10, 20)...)
	for _, c := range []struct {
		name   string
		status int
		body   []byte
	}{
		{"nothing", 400, nil},
		{"no empty line", 400, []byte("old 0\n")},
		{"an old size with a zero before it", 400, bytes.Replace(good, []byte("old 10"), []byte("old 010"), 1)},
		{"a negative old size", 400, bytes.Replace(good, []byte("old 10"), []byte("old -1"), 1)},
		{"a proof line that is no base64", 400, bytes.Replace(good, []byte("old 10\n"), []byte("old 10\n!\n"), 1)},
		{"a proof line of 31 bytes", 400, at(l, "a", 20, 10, junk[:31])},
		{"too many proof lines", 400, at(l, "a", 20, 10, make64(junk)...)},
		{"larger old than new", 400, at(l, "a", 5, 10)},
		{"too long", 400, append(bytes.Clone(good), bytes.Repeat([]byte("— x AAAA\n"), 10000)...)},
		{"an unknown log", 404, at(stranger, "a", 20, 0)},
		{"a known name with another key", 403, at(impostor, "a", 20, 10)},
		{"a changed root", 403, bytes.Replace(good, []byte("\n20\n"), []byte("\n21\n"), 1)},
		{"an older idea of what was seen", 409, at(l, "a", 20, 9, consistency(9, 20)...)},
		{"a replayed first request", 409, at(l, "a", 10, 0)},
		{"no proof", 422, at(l, "a", 20, 10)},
		{"a wrong proof", 422, at(l, "a", 20, 10, junk)},
		{"a proof for the same size", 422, at(l, "a", 10, 10, junk)},
		{"another root for the same size", 422, at(l, "b", 10, 10)},
		{"another history", 422, at(l, "b", 20, 10, consistency(10, 20)...)},
	} {
		status, body, kind := post(c.body)
		if status != c.status {
			t.Errorf("%s: %d %q, want %d", c.name, status, body, c.status)
		}
		if status == 409 && (body != "10\n" || kind != "text/x.tlog.size") {
			t.Errorf("%s: %q %q", c.name, body, kind)
		}
	}
	if status, body, _ := post(good); status != http.StatusOK {
		t.Errorf("after all this: %d %q", status, body)
	}
	for _, path := range []string{"/", "/checkpoint", "/" + originHash("example.com/other") + "/checkpoint", "/../w"} {
		a, err := h.Client().Get(h.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, a.StatusCode)
		}
	}
}

// TestAttack_CheckpointShownAgain: everybody can read a checkpoint and show it to the witness again. It is signed
// each time, and written once: an SD card does not wear out by it.
func TestAttack_CheckpointShownAgain(t *testing.T) {
	l := newLog(t, "example.com/log")
	s, _ := newServer(t, t.TempDir(), "w", newKey(t), l)
	note := l.with("a", 3).Checkpoint.Note
	if _, err := s.add((&request{0, nil, note}).encode()); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(s.file(l.key.Name()))
	if err != nil {
		t.Fatal(err)
	}
	line, err := s.add((&request{3, nil, note}).encode())
	if err != nil {
		t.Fatal(err)
	}
	if names, err := Cosigners(append(bytes.Clone(note), line...), l.key, []*Key{s.Key()}); err != nil || len(names) != 1 {
		t.Errorf("signed by %v: %v", names, err)
	}
	if after, err := os.Stat(s.file(l.key.Name())); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written again: %v", err)
	}
}

func make64(h []byte) (out [][]byte) {
	for range maxProof + 1 {
		out = append(out, h)
	}
	return out
}

// A witness of which the disk was put back cosigns what continues the old state,
// and no more than that: the others still count.
func TestRolledBackWitnessIsOneOfSeveral(t *testing.T) {
	l := newLog(t, "example.com/log")
	var clients []*Client
	var keys []*Key
	for i := range 3 {
		s, h := newServer(t, t.TempDir(), fmt.Sprint("w", i), newKey(t), l)
		clients, keys = append(clients, client(s, h)), append(keys, s.Key())
		if i > 0 { // the first one has forgotten
			if _, err := clients[i].Cosign(t.Context(), l.with("a", 50), l.key); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := l.with("b", 60)
	msg := bytes.Clone(r.Checkpoint.Note)
	for _, c := range clients {
		if line, err := c.Cosign(t.Context(), r, l.key); err == nil {
			msg = append(msg, line...)
		}
	}
	if names, err := Cosigners(msg, l.key, keys); err != nil || len(names) != 1 {
		t.Errorf("a second history was cosigned by %v (%v)", names, err)
	}
}

func TestAnswersThatAreNotBelieved(t *testing.T) {
	l := newLog(t, "example.com/log")
	s, _ := newServer(t, t.TempDir(), "w", newKey(t), l)
	other, _ := newServer(t, t.TempDir(), "w", newKey(t), l)
	r := l.with("a", 3)
	line, err := other.add((&request{0, nil, r.Checkpoint.Note}).encode())
	if err != nil {
		t.Fatal(err)
	}
	forged := newLog(t, "example.com/log").with("a", 9)
	for name, c := range map[string]struct {
		seen, answer func(w http.ResponseWriter)
		reason       string
	}{
		"a signature by another key": {nil, func(w http.ResponseWriter) { w.Write(line) }, ReasonSignature},
		"no signature":               {nil, func(w http.ResponseWriter) {}, ReasonSignature},
		"an error":                   {nil, func(w http.ResponseWriter) { w.WriteHeader(500) }, ReasonUnreachable},
		"422":                        {nil, func(w http.ResponseWriter) { w.WriteHeader(422) }, ReasonUnreachable},
		"a conflict that it cannot show": {nil, func(w http.ResponseWriter) {
			w.WriteHeader(409)
			w.Write([]byte("9\n"))
		}, ReasonConflict},
		"a checkpoint that the log never signed": {func(w http.ResponseWriter) { w.Write(forged.Checkpoint.Note) }, nil, ReasonUnreachable},
	} {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			switch {
			case q.Method == http.MethodPost:
				c.answer(w)
			case c.seen != nil:
				c.seen(w)
			default:
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		_, err := (&Client{URL: h.URL, Key: s.Key(), HTTP: h.Client()}).Cosign(t.Context(), r, l.key)
		h.Close()
		e, ok := err.(*Error)
		if !ok || e.Reason != c.reason || e.Size != 0 {
			t.Errorf("%s: %v, want %s", name, err, c.reason)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Client{URL: "http://127.0.0.1:1", Key: s.Key(), HTTP: http.DefaultClient}).Cosign(ctx, r, l.key); Reason(err) != ReasonUnreachable {
		t.Error(err)
	}
}

// The key and signature of C2SP tlog-cosignature, with its own arithmetic.
func TestKeysAndCosignatures(t *testing.T) {
	private := newKey(t)
	k, err := NewKey("witness.example.com/w1", private.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseKey(k.String())
	if err != nil || again.String() != k.String() {
		t.Errorf("%s: %v", k, err)
	}
	msg := []byte("example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n")
	signed := ed25519.Sign(private, []byte("cosignature/v1\ntime 1679315147\n"+string(msg)))
	sig := append([]byte{0, 0, 0, 0, 0x64, 0x18, 0x50, 0xcb}, signed...)
	if !k.Verify(msg, sig) {
		t.Error("a cosignature as the specification has it is refused")
	}
	for i := range sig {
		bad := bytes.Clone(sig)
		bad[i] ^= 1
		if k.Verify(msg, bad) {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
	plain, _ := note.NewEd25519VerifierKey("w", private.Public().(ed25519.PublicKey))
	for _, bad := range []string{"", "w", plain, k.String() + "A", strings.Replace(k.String(), "w1", "w2", 1), strings.ToUpper(k.String())} {
		if _, err := ParseKey(bad); Reason(err) != ReasonKey {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, name := range []string{"", "a b", "a+b", "ü", strings.Repeat("a", 201)} {
		if _, err := NewKey(name, k.public); Reason(err) != ReasonKey {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{"old 0\n\nx\n1\nAAAA\n\n— x AAAA\n", "old 10\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n\nx", "", "old 0\n\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseRequest(body)
		if err != nil {
			if Reason(err) != ReasonRequest {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(r.encode(), body) {
			t.Fatalf("%q is written as %q", body, r.encode())
		}
	})
}

func FuzzParseKey(f *testing.F) {
	k, _ := NewKey("w", newKey(f).Public().(ed25519.PublicKey))
	f.Add(k.String())
	f.Add("a+00000000+AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Fatalf("%q is written as %q", s, k)
		}
	})
}
