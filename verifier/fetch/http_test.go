package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/verifier/image/imagetest"
)

// beChild makes the test's own program one that fetches until it is killed.
const beChild = "PORTCULLIS_TEST_FETCH"

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv(beChild)); len(args) == 2 {
		q, err := OpenQuarantine(args[0])
		if err == nil {
			_, err = New(Options{}).URL(context.Background(), q, args[1])
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// quick are options with which a bad server is given up soon.
var quick = Options{Fruitless: 2, Attempts: 6, Pause: time.Millisecond, Window: 200 * time.Millisecond, MinBytes: 1 << 10, PlainHTTP: true, MaxBytes: 8 << 20}

func quarantine(t *testing.T) *Quarantine {
	t.Helper()
	q, err := OpenQuarantine(filepath.Join(t.TempDir(), "q"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q
}

// sample is an archive of an image, larger than what the kernel keeps of a connection.
func sample(t testing.TB) []byte {
	big := bytes.Repeat([]byte("all work and no play "), 50000)
	return imagetest.Pack(t, imagetest.OCI(t, imagetest.OneFile(t, "probe", string(big)), imagetest.OneFile(t, "mark", "x")))
}

// server answers with h and counts the requests.
func server(t *testing.T, h func(w http.ResponseWriter, r *http.Request, n int64)) (url string, count *atomic.Int64) {
	t.Helper()
	count = &atomic.Int64{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, r, count.Add(1)) }))
	t.Cleanup(s.Close)
	return s.URL, count
}

// cutAt sends the head of a whole file, and n bytes of it.
func cutAt(w http.ResponseWriter, b []byte, n int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func content(t *testing.T, i *Image) []byte {
	t.Helper()
	r, err := i.Open()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != i.Size {
		t.Errorf("%d bytes, %d were named", len(b), i.Size)
	}
	return b
}

func TestURLIsResumed(t *testing.T) {
	want := sample(t)
	var from []string
	url, count := server(t, func(w http.ResponseWriter, r *http.Request, n int64) {
		w.Header().Set("ETag", `"one"`)
		from = append(from, r.Header.Get("Range")+" "+r.Header.Get("If-Range"))
		if n == 1 {
			cutAt(w, want, 300000)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(want))
	})
	i, err := New(quick).URL(t.Context(), quarantine(t), url+"/x.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if !bytes.Equal(content(t, i), want) {
		t.Error("other bytes")
	}
	if count.Load() != 2 || !strings.HasSuffix(from[1], `- "one"`) || from[1] == `bytes=0- "one"` {
		t.Errorf("asked %q", from)
	}
}

// TestURLIsResumedAfterAKill: what came before a kill -9 is not fetched again.
func TestURLIsResumedAfterAKill(t *testing.T) {
	want := sample(t)
	var again atomic.Int64
	sent := make(chan struct{})
	url, _ := server(t, func(w http.ResponseWriter, r *http.Request, n int64) {
		w.Header().Set("ETag", `"one"`)
		if n == 1 {
			w.Header().Set("Content-Length", strconv.Itoa(len(want)))
			w.Write(want[:500000])
			w.(http.Flusher).Flush()
			close(sent)
			<-r.Context().Done()
			return
		}
		_, from, _ := strings.Cut(r.Header.Get("Range"), "=")
		at, _ := strconv.Atoi(strings.TrimSuffix(from, "-"))
		again.Store(int64(at))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(want))
	})
	q := quarantine(t)
	q.Close() // the child's turn
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), beChild+"="+q.dir+" "+url)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	<-sent
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if st, err := os.Stat(filepath.Join(q.dir, "archive.part")); err == nil && st.Size() >= 400000 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing came")
		}
	}
	if _, err := OpenQuarantine(q.dir); Reason(err) != ReasonBusy {
		t.Errorf("a second import: %v", err)
	}
	child.Process.Kill()
	child.Wait()
	q, err := OpenQuarantine(q.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	i, err := New(quick).URL(t.Context(), q, url)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if !bytes.Equal(content(t, i), want) || again.Load() < 400000 || !i.Resumed {
		t.Errorf("went on at byte %d, resumed %t", again.Load(), i.Resumed)
	}
}

// TestAttack_BadWebServer: what a server can do wrong, and what comes of it.
func TestAttack_BadWebServer(t *testing.T) {
	good := sample(t)
	other := bytes.Clone(good)
	other[len(other)-2000] ^= 1
	part := func(w http.ResponseWriter, r string, b []byte) {
		w.Header().Set("Content-Range", r)
		w.WriteHeader(http.StatusPartialContent)
		w.Write(b)
	}
	cases := map[string]struct {
		reason string // "" = it is fetched all the same
		serve  func(w http.ResponseWriter, r *http.Request, n int64)
	}{
		"not there":     {ReasonStatus, func(w http.ResponseWriter, r *http.Request, n int64) { w.WriteHeader(404) }},
		"always broken": {ReasonStatus, func(w http.ResponseWriter, r *http.Request, n int64) { w.WriteHeader(503) }},
		"broken once": {"", func(w http.ResponseWriter, r *http.Request, n int64) {
			if n == 1 {
				w.WriteHeader(503)
			} else {
				w.Write(good)
			}
		}},
		"always cut": {ReasonUnreachable, func(w http.ResponseWriter, r *http.Request, n int64) { cutAt(w, good, 1000) }},
		"cut after a byte more each time": {ReasonUnreachable, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("ETag", `"a"`)
			var at int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
			if at == 0 {
				cutAt(w, good, 1)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(good)-1, len(good)))
			w.Header().Set("Content-Length", strconv.Itoa(len(good)-at))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(good[at : at+1])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}},
		"endless": {ReasonTooLarge, func(w http.ResponseWriter, r *http.Request, n int64) {
			for range 100 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}},
		"says it is endless": {ReasonTooLarge, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("Content-Length", "999999999999999")
			w.Write(good)
		}},
		"a byte now and then": {ReasonSlow, func(w http.ResponseWriter, r *http.Request, n int64) {
			for r.Context().Err() == nil {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}},
		"redirect to a file": {ReasonRedirect, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(302)
		}},
		"redirect to gopher": {ReasonRedirect, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("Location", "gopher://127.0.0.1/x")
			w.WriteHeader(302)
		}},
		"redirect with login": {ReasonRedirect, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("Location", "http://a:b@127.0.0.1/x")
			w.WriteHeader(302)
		}},
		"redirect in a ring": {ReasonRedirect, func(w http.ResponseWriter, r *http.Request, n int64) { http.Redirect(w, r, "/again", http.StatusFound) }},
		"in another coding": {ReasonRange, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(imagetest.Gzip(t, good))
		}},
		"a part of nothing": {ReasonRange, func(w http.ResponseWriter, r *http.Request, n int64) { part(w, "bytes 0-9/10", good[:10]) }},
		"another part": {ReasonRange, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("ETag", `"a"`)
			if n == 1 {
				cutAt(w, good, 300000)
			}
			part(w, fmt.Sprintf("bytes 7-%d/%d", len(good)-1, len(good)), good[7:])
		}},
		"a range of no form": {ReasonRange, func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("ETag", `"a"`)
			if n == 1 {
				cutAt(w, good, 300000)
			}
			part(w, "bytes 300000-/*", good[300000:])
		}},
		"another size later": {"", func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("ETag", `"a"`)
			var at int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
			switch n {
			case 1:
				cutAt(w, other, 300000)
			case 2:
				part(w, fmt.Sprintf("bytes %d-%d/%d", at, len(good), len(good)+1), append(bytes.Clone(good[at:]), 'x'))
			default:
				w.Write(good)
			}
		}},
		"another file later": {"", func(w http.ResponseWriter, r *http.Request, n int64) {
			// It ignores If-Range: the other ETag gives it away.
			var at int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
			switch n {
			case 1:
				w.Header().Set("ETag", `"other"`)
				cutAt(w, other, 300000)
			case 2:
				w.Header().Set("ETag", `"good"`)
				part(w, fmt.Sprintf("bytes %d-%d/%d", at, len(good)-1, len(good)), good[at:])
			default:
				w.Write(good)
			}
		}},
		"no validator": {"", func(w http.ResponseWriter, r *http.Request, n int64) {
			if r.Header.Get("Range") != "" {
				t.Error("a part of a file that may have changed was asked for")
			}
			if n == 1 {
				cutAt(w, other, 300000)
			}
			w.Write(good)
		}},
		"shorter than before": {"", func(w http.ResponseWriter, r *http.Request, n int64) {
			w.Header().Set("ETag", `"a"`)
			switch n {
			case 1:
				cutAt(w, append(bytes.Clone(good), good...), len(good)+5)
			case 2:
				w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(good)))
				w.WriteHeader(416)
			default:
				w.Write(good)
			}
		}},
		"no image": {"tar-malformed", func(w http.ResponseWriter, r *http.Request, n int64) { w.Write([]byte("<html>not found</html>")) }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			q := quarantine(t)
			url, count := server(t, c.serve)
			i, err := New(quick).URL(t.Context(), q, url)
			if err == nil {
				defer i.Close()
			}
			if c.reason == "" {
				if err != nil || !bytes.Equal(content(t, i), good) {
					t.Fatalf("%v", err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), c.reason) {
				t.Fatalf("%v, not %s", err, c.reason)
			}
			if count.Load() > 8 {
				t.Errorf("%d requests", count.Load())
			}
			if st, err := os.Stat(filepath.Join(q.dir, "archive.part")); err == nil && st.Size() > quick.MaxBytes {
				t.Errorf("%d bytes on the disk", st.Size())
			}
		})
	}
}

func TestAddressesThatAreNone(t *testing.T) {
	q := quarantine(t)
	for _, a := range []string{"", "file:///etc/passwd", "ftp://h/x", "http://", "https://u:p@h/x", "http://h/x#y", "//h/x"} {
		if _, err := New(quick).URL(t.Context(), q, a); Reason(err) != ReasonReference {
			t.Errorf("%q: %v", a, err)
		}
	}
}

// What is waited for ends with the context.
func TestURLEndsWithItsContext(t *testing.T) {
	url, _ := server(t, func(w http.ResponseWriter, r *http.Request, n int64) { w.WriteHeader(503) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(Options{Pause: time.Hour}).URL(ctx, quarantine(t), url); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestQuarantineOfOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenQuarantine(dir); Reason(err) != ReasonStorage {
		t.Error(err)
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes */5", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9/*", "bytes 999999999999999999-999999999999999999/999999999999999999", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := contentRange(s)
		if ok && first >= 0 && (first > last || last >= total) || ok && total < 0 {
			t.Errorf("%q: %d-%d/%d", s, first, last, total)
		}
	})
}
