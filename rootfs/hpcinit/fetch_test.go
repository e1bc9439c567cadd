package hpcinit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
	"portcullis/rootfs/boot"
)

// quick are limits for tests: the same rules, shorter.
var quick = FetchLimits{
	Head: time.Second, Stall: 150 * time.Millisecond, Chunk: time.Second, Total: 10 * time.Second,
	Tries: 4, Backoff: time.Millisecond, Cap: 5 * time.Millisecond,
}

// fetchFrom downloads content from handler and checks what came.
func fetchFrom(t *testing.T, content []byte, lim FetchLimits, handler http.HandlerFunc) (*download, error) {
	t.Helper()
	s := httptest.NewServer(handler)
	defer s.CloseClientConnections()
	t.Cleanup(s.Close)
	return fetchAt(t, content, lim, s.Listener.Addr())
}

func fetchAt(t *testing.T, content []byte, lim FetchLimits, addr net.Addr) (*download, error) {
	t.Helper()
	a, err := manifest.Describe(manifest.Root, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	d := &download{
		src:      Source{Addr: netip.MustParseAddrPort(addr.String()), Path: "/b/" + testSession + "/"},
		artefact: a, dst: make([]byte, len(content)), lim: lim,
	}
	err = d.run(t.Context())
	if err == nil && !bytes.Equal(d.dst, content) {
		t.Error("the download ended well with other bytes than were signed")
	}
	return d, err
}

func serve(content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

// cut ends the connection at once.
func cut(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		conn.Close()
	}
}

// limited passes on n bytes of the body and then calls end.
type limited struct {
	http.ResponseWriter
	left int
	end  func()
}

func (l *limited) Write(b []byte) (int, error) {
	if len(b) > l.left {
		l.ResponseWriter.Write(b[:l.left])
		l.ResponseWriter.(http.Flusher).Flush()
		l.left = 0
		l.end()
		return 0, io.ErrClosedPipe
	}
	l.left -= len(b)
	return l.ResponseWriter.Write(b)
}

const testSize = 5*manifest.ChunkSize + 4096

func TestFetchWhole(t *testing.T) {
	for _, size := range []int{1, manifest.ChunkSize - 1, manifest.ChunkSize, manifest.ChunkSize + 1, testSize} {
		var requests atomic.Int32
		content := manifesttest.Content("root", size)
		d, err := fetchFrom(t, content, quick, func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			if r.URL.Path != "/b/"+testSession+"/root.img" {
				t.Errorf("asked for %s", r.URL)
			}
			serve(content)(w, r)
		})
		if err != nil || requests.Load() != 1 || d.resumes != 0 || d.received.Load() != int64(size) {
			t.Errorf("%d bytes: %v, %d requests, %d resumes", size, err, requests.Load(), d.resumes)
		}
	}
}

// Every connection is cut after a bit more than a chunk: the download goes on
// behind the last whole chunk each time and asks for no chunk twice.
func TestFetchOverCutConnections(t *testing.T) {
	content := manifesttest.Content("root", testSize)
	var ranges []string
	d, err := fetchFrom(t, content, quick, func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		serve(content)(&limited{w, manifest.ChunkSize * 3 / 2, func() { cut(w) }}, r)
	})
	if err != nil || d.resumes != 4 {
		t.Errorf("%v, %d resumes", err, d.resumes)
	}
	for i, r := range ranges {
		if want := fmt.Sprintf("bytes=%d-%d", i*manifest.ChunkSize, testSize-1); r != want {
			t.Errorf("request %d asked for %s, want %s", i, r, want)
		}
	}
}

func TestFetchOverARestart(t *testing.T) {
	content := manifesttest.Content("root", testSize)
	var n atomic.Int32
	_, err := fetchFrom(t, content, quick, func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) {
		case 1:
			cut(w)
		case 2:
			http.Error(w, "starting", http.StatusServiceUnavailable)
		case 3:
			serve(content)(&limited{w, 2 * manifest.ChunkSize, func() { <-r.Context().Done() }}, r) // stalls
		default:
			serve(content)(w, r)
		}
	})
	if err != nil || n.Load() != 4 {
		t.Errorf("%v after %d requests", err, n.Load())
	}
}

// One chunk is wrong the first time and right the second: it alone is asked for again.
func TestFetchRepeatsAWrongChunk(t *testing.T) {
	content := manifesttest.Content("root", testSize)
	bad := bytes.Clone(content)
	bad[2*manifest.ChunkSize+17] ^= 1
	bad[testSize-1] ^= 0x80
	var ranges []string
	_, err := fetchFrom(t, content, quick, func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) == 1 {
			serve(bad)(w, r)
			return
		}
		serve(content)(w, r)
	})
	want := fmt.Sprintf("[bytes=0-%d bytes=%d-%d bytes=%d-%d]", testSize-1, 2*manifest.ChunkSize, 3*manifest.ChunkSize-1, 5*manifest.ChunkSize, testSize-1)
	if got := fmt.Sprint(ranges); err != nil || got != want {
		t.Errorf("%v, asked for %s, want %s", err, got, want)
	}
}

func TestFetchRefusals(t *testing.T) {
	content := manifesttest.Content("root", testSize)
	flipped := bytes.Clone(content)
	flipped[3*manifest.ChunkSize] ^= 1
	slow := quick
	slow.Total = 400 * time.Millisecond
	for name, c := range map[string]struct {
		lim     FetchLimits
		reason  boot.Reason
		handler http.HandlerFunc
	}{
		"one byte is wrong for good": {quick, ReasonChunk, serve(flipped)},
		"everything is wrong":        {quick, ReasonChunk, serve(make([]byte, testSize))},
		"too short":                  {quick, ReasonSize, serve(content[:testSize-1])},
		"too long":                   {quick, ReasonSize, serve(append(bytes.Clone(content), 0))},
		"empty":                      {quick, ReasonSize, serve(nil)},
		"not there":                  {quick, ReasonRefused, http.NotFound},
		"session over":               {quick, ReasonRefused, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "", http.StatusGone) }},
		"never available":            {quick, ReasonRefused, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "", http.StatusServiceUnavailable) }},
		"always cut at once":         {quick, ReasonFetch, func(w http.ResponseWriter, r *http.Request) { cut(w) }},
		"always cut in a chunk": {quick, ReasonFetch, func(w http.ResponseWriter, r *http.Request) {
			serve(content)(&limited{w, manifest.ChunkSize / 2, func() { cut(w) }}, r)
		}},
		"answers nothing": {quick, ReasonFetch, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(quick.Head * 2):
			}
		}},
		"stalls for ever": {quick, ReasonFetch, func(w http.ResponseWriter, r *http.Request) {
			serve(content)(&limited{w, 1000, func() { <-r.Context().Done() }}, r)
		}},
		"drips for ever": {slow, ReasonFetchTime, func(w http.ResponseWriter, r *http.Request) { drip(w, r, 10*time.Millisecond) }},
		"drips under the lowest rate": {quickChunk(200 * time.Millisecond), ReasonFetch, func(w http.ResponseWriter, r *http.Request) {
			drip(w, r, 10*time.Millisecond)
		}},
		"redirects": {quick, ReasonHTTP, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			d, err := fetchFrom(t, content, c.lim, c.handler)
			if err == nil || boot.ReasonOf(err) != c.reason {
				t.Errorf("%v, want %s", err, c.reason)
			}
			if took := time.Since(start); took > c.lim.Total+c.lim.Stall+2*time.Second {
				t.Errorf("it took %v, %d resumes", took, d.resumes)
			}
		})
	}
}

func quickChunk(d time.Duration) FetchLimits {
	l := quick
	l.Chunk = d
	return l
}

// drip sends a byte at a time, for ever.
func drip(w http.ResponseWriter, r *http.Request, every time.Duration) {
	w.Header().Set("Content-Length", fmt.Sprint(testSize))
	w.WriteHeader(http.StatusOK)
	for r.Context().Err() == nil {
		io.WriteString(w, "x")
		w.(http.Flusher).Flush()
		time.Sleep(every)
	}
}

func TestFetchFromNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := fetchAt(t, []byte("x"), quick, l.Addr()); boot.ReasonOf(err) != ReasonFetch {
		t.Errorf("%v", err)
	}
}

// The head of an answer that never ends costs the time of one head, not a hang.
func TestAttackEndlessHead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for {
					if _, err := io.WriteString(conn, "a: "+strings.Repeat("b", 100)+"\r\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	if _, err := fetchAt(t, []byte("x"), quick, l.Addr()); boot.ReasonOf(err) != ReasonHTTP {
		t.Errorf("%v", err)
	}
}

func TestFetchSmall(t *testing.T) {
	content := []byte("an envelope")
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			cut(w)
			return
		}
		serve(content)(w, r)
	}))
	defer s.Close()
	src := Source{Addr: netip.MustParseAddrPort(s.Listener.Addr().String()), Path: "/b/x/"}
	got, err := fetchSmall(t.Context(), src, "manifest.dsse", int64(len(content)), quick)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := fetchSmall(t.Context(), src, "manifest.dsse", int64(len(content))-1, quick); boot.ReasonOf(err) != ReasonSize {
		t.Errorf("over the cap: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fetchSmall(ctx, src, "manifest.dsse", 100, quick); boot.ReasonOf(err) != ReasonFetchTime {
		t.Errorf("ended before: %v", err)
	}
}

func BenchmarkFetch(b *testing.B) {
	content := manifesttest.Content("root", 64<<20)
	a, err := manifest.Describe(manifest.Root, bytes.NewReader(content))
	if err != nil {
		b.Fatal(err)
	}
	s := httptest.NewServer(serve(content))
	defer s.Close()
	d := &download{src: Source{netip.MustParseAddrPort(s.Listener.Addr().String()), "/"}, artefact: a, dst: make([]byte, len(content)), lim: quick}
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if err := d.run(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
