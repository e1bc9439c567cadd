package rpc

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
)

// counted counts the connections that were accepted, and can end them all.
type counted struct {
	net.Listener
	mu  sync.Mutex
	all []net.Conn
}

func (c *counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		c.all = append(c.all, conn)
		c.mu.Unlock()
	}
	return conn, err
}

func (c *counted) accepted() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all)
}

func serveCounted(t testing.TB, path string, h portcullisv1connect.BootHandler) (l *counted, stop func()) {
	t.Helper()
	plain, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	l = &counted{Listener: plain}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewBootHandler(h))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, mux) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, conn := range l.all { // a process that has ended holds none any more
			conn.Close()
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// Calls that follow one another share a connection, also after one that was refused; a
// stream that nobody reads to its end takes its connection with it.
func TestLeanLeavesItsConnectionToTheNextCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "boot.sock")
	l, _ := serveCounted(t, path, boot{})
	c := portcullisv1connect.NewBootClient(Lean(), BaseURL)
	call := func() {
		t.Helper()
		if got, err := c.GetSession(To(t.Context(), path), connect.NewRequest(&v1.GetSessionRequest{})); err != nil || got.Msg.Session.Id != "one" {
			t.Fatal(got, err)
		}
	}
	call()
	if _, err := c.Claim(To(t.Context(), path), connect.NewRequest(&v1.ClaimRequest{})); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Fatal(err)
	}
	call()
	if n := l.accepted(); n != 1 {
		t.Errorf("three calls took %d connections", n)
	}
	ctx, cancel := context.WithCancel(To(t.Context(), path))
	st, err := c.WatchSessions(ctx, connect.NewRequest(&v1.WatchSessionsRequest{}))
	if err != nil || !st.Receive() {
		t.Fatal(err)
	}
	cancel()
	st.Close()
	call()
	if n := l.accepted(); n != 2 {
		t.Errorf("%d connections after a stream that was given up; it has its own", n)
	}
}

// A service that is started anew is called again at once: what is left of the one before
// is not used.
func TestLeanFindsAServiceThatWasStartedAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "boot.sock")
	c := portcullisv1connect.NewBootClient(Lean(), BaseURL)
	for range 3 {
		l, stop := serveCounted(t, path, boot{})
		for range 2 {
			if _, err := c.GetSession(To(t.Context(), path), connect.NewRequest(&v1.GetSessionRequest{})); err != nil {
				t.Fatal(err)
			}
		}
		if n := l.accepted(); n != 1 {
			t.Errorf("%d connections", n)
		}
		stop()
	}
}

// Calls at the same time have a connection each, and one of them is left.
func TestLeanCallsAtTheSameTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "boot.sock")
	serveCounted(t, path, boot{})
	transport := Lean()
	c := portcullisv1connect.NewBootClient(transport, BaseURL)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				if got, err := c.GetSession(To(t.Context(), path), connect.NewRequest(&v1.GetSessionRequest{})); err != nil || got.Msg.Session.Id != "one" {
					t.Error(got, err)
				}
			}
		})
	}
	group.Wait()
	if n := len(transport.Transport.(*lean).idle); n != 1 {
		t.Errorf("%d connections are left", n)
	}
}

// BenchmarkLean is what one call costs both ends.
func BenchmarkLean(b *testing.B) {
	path := filepath.Join(b.TempDir(), "s", "boot.sock")
	serveCounted(b, path, boot{})
	c := portcullisv1connect.NewBootClient(Lean(), BaseURL)
	ctx := To(b.Context(), path)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.GetSession(ctx, connect.NewRequest(&v1.GetSessionRequest{})); err != nil {
			b.Fatal(err)
		}
	}
}

// A connection is one call's at a time: a body that is closed twice, or read after that, is
// no longer part of it, and a body that was read in part ends it.
func TestLeanBodiesDoNotMeet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "plain.sock")
	plain, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := &counted{Listener: plain}
	go Serve(t.Context(), l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat(r.URL.Path, 100))
	}))
	c := Lean()
	get := func(what string) io.ReadCloser {
		t.Helper()
		r, err := http.NewRequestWithContext(To(t.Context(), path), http.MethodGet, BaseURL+what, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return answer.Body
	}
	whole := func(body io.Reader, what string) {
		t.Helper()
		if got, err := io.ReadAll(body); err != nil || string(got) != strings.Repeat(what, 100) {
			t.Errorf("%s was answered %q, %v", what, got, err)
		}
	}
	one := get("/one")
	whole(one, "/one")
	one.Close()
	two := get("/two") // on the same connection
	one.Close()
	if n, err := one.Read(make([]byte, 10)); n != 0 || err == nil {
		t.Errorf("a closed body was read: %d bytes, %v", n, err)
	}
	whole(two, "/two")
	two.Close()
	if n := l.accepted(); n != 1 {
		t.Errorf("%d connections", n)
	}
	half := get("/half")
	if _, err := io.ReadFull(half, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	half.Close()
	three := get("/three")
	whole(three, "/three")
	three.Close()
	if n := l.accepted(); n != 2 {
		t.Errorf("%d connections after a body that was read in part", n)
	}
}

// A call is made once: a service that ends in the middle of one, on a connection that was
// kept, is not asked again.
func TestLeanMakesACallOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "plain.sock")
	plain, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int32
	go Serve(t.Context(), plain, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
	}))
	c := Lean()
	call := func() error {
		r, err := http.NewRequestWithContext(To(t.Context(), path), http.MethodPost, BaseURL, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.Do(r)
		if err != nil {
			return err
		}
		io.Copy(io.Discard, answer.Body)
		return answer.Body.Close()
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	if err := call(); err == nil {
		t.Error("a call without an answer succeeded")
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("the service was called %d times", n)
	}
	if err := call(); err != nil {
		t.Error(err)
	}
}
