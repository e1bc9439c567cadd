package guard

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
	"portcullis/verifier/engine"
	"portcullis/verifier/stamp"
)

// pair is a caller's connection, as the guard has it, and its other end.
func pair(t *testing.T) (*watched, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	own, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{Conn: own, leave: func() {}}
	t.Cleanup(func() { w.Close(); other.Close() })
	return w, other
}

// A caller who has nothing to send closes his half, and reads on: he is there until he
// closes all of it.
func TestCallerWhoOnlyReadsIsThere(t *testing.T) {
	w, other := pair(t)
	if err := other.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if !open(w) {
		t.Error("a caller who reads on is taken for one who is gone")
	}
	other.Close()
	if open(w) {
		t.Error("a caller who is gone is taken for one who reads")
	}
}

// forged is what the HTTP server writes by itself to who sends no request.
const forged = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"

// played is a guard before an engine that is played: it has one container, which writes forged.
func played(t *testing.T) (socket string, a *approvals) {
	t.Helper()
	dir := t.TempDir()
	door, err := net.Listen("unix", filepath.Join(dir, "engine"))
	if err != nil {
		t.Fatal(err)
	}
	plays := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		switch {
		case strings.HasSuffix(r.URL.Path, "/attach"):
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(c, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"+forged)
			c.Close()
		case strings.HasSuffix(r.URL.Path, "/json"):
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"Id":"one"}`)
		}
	})}
	a, err = newApprovals(filepath.Join(dir, "approvals"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := engine.New(door.Addr().String(), stamp.New(time.Now))
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Options{Engine: c, Approvals: a, StateDir: filepath.Join(dir, "state"), Clock: clock.Real{}, Events: event.NewJSON(&eventtest.Buffer{}, "guard", time.Now)})
	if err != nil {
		t.Fatal(err)
	}
	g.info.API = "1.41"
	if err := g.state.change(func(f *stateFile) { f.Containers["one"] = madeByGuard{} }); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "guard"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- plays.Serve(door) }()
	go func() { ended <- g.Serve(t.Context(), l) }() // ends with the test, before what follows
	t.Cleanup(func() { plays.Close(); <-ended; <-ended })
	return l.Addr().String(), a
}

// What the HTTP server answers by itself is in the log, whatever it is, also after a request that
// was answered.
func TestNobodyIsAnsweredUnseen(t *testing.T) {
	const ping = "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, c := range map[string]struct{ sent, reason string }{
		"no request":             {"nonsense\r\n\r\n", ReasonMalformed},
		"no request behind one":  {ping + "nonsense\r\n\r\n", ReasonMalformed},
		"a coding nobody has":    {"POST /images/load HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n", ReasonMalformed},
		"something is expected":  {"GET /_ping HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n", ReasonMalformed},
		"about the whole server": {"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", ReasonPath},
		"two lengths":            {"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", ReasonMalformed},
		"a length and chunks":    {"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ReasonLength},
	} {
		t.Run(name, func(t *testing.T) {
			socket, log := played(t)
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, c.sent)
			answer, err := io.ReadAll(conn)
			if err != nil || !slices.Equal(log.reasons(), []string{c.reason}) {
				t.Errorf("in the log %v, want %s; %v, answered\n%s", log.reasons(), c.reason, err, answer)
			}
		})
	}
}

// TestAttack_ContainerWritesIntoTheLog: what a container writes is no answer of the HTTP server.
func TestAttack_ContainerWritesIntoTheLog(t *testing.T) {
	socket, log := played(t)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST /v1.41/containers/one/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	if answer, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(answer), forged) {
		t.Errorf("%v: %q", err, answer)
	}
	if got := log.reasons(); len(got) != 0 {
		t.Errorf("a container wrote into the log: %v", got)
	}
}

// pipes is a listener of callers whom nobody knows.
type pipes struct{ come chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p.come
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (pipes) Close() error   { return nil }
func (pipes) Addr() net.Addr { return &net.UnixAddr{} }

// TestAttack_CrowdOfCallers: who may call the guard and holds its connections open does not keep root out, nor
// the verifier's own test of itself.
func TestAttack_CrowdOfCallers(t *testing.T) {
	g := before(t, &listed{}, func(*Options) {})
	log := g.opt.Approvals.(*approvals)
	p := pipes{make(chan net.Conn)}
	l := &watchedListener{Listener: p, guard: g, ctx: t.Context(), places: make(chan struct{}, 3), others: make(chan struct{}, 2)}
	come := func() net.Conn {
		ours, theirs := net.Pipe()
		p.come <- ours
		return theirs
	}
	in := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(in)
				return
			}
			in <- c
		}
	}()
	come()
	come()
	held := <-in
	<-in
	turned := come()
	if _, err := turned.Read(make([]byte, 1)); err == nil {
		t.Error("one more is let in")
	}
	held.Close()
	held.Close() // once is enough
	come()
	<-in
	close(p.come)
	if _, more := <-in; more || !slices.Equal(log.reasons(), []string{ReasonCrowd}) {
		t.Errorf("in the log %v", log.reasons())
	}
	if len(l.places) != 2 || len(l.others) != 2 {
		t.Errorf("%d places and %d of others are taken", len(l.places), len(l.others))
	}
	for caller, want := range map[string]bool{"uid 0": true, fmt.Sprintf("uid %d", os.Getuid()): true, "uid 1": false, "uid 00": false, "unknown": false, "": false} {
		if first(caller) != want {
			t.Errorf("%q comes first: %t", caller, !want)
		}
	}
}
