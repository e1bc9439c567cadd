package rpc

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
)

type boot struct {
	portcullisv1connect.UnimplementedBootHandler
}

func (boot) GetSession(context.Context, *connect.Request[v1.GetSessionRequest]) (*connect.Response[v1.GetSessionResponse], error) {
	return connect.NewResponse(&v1.GetSessionResponse{Session: &v1.Session{Id: "one"}}), nil
}

func (boot) WatchSessions(_ context.Context, _ *connect.Request[v1.WatchSessionsRequest], s *connect.ServerStream[v1.WatchSessionsResponse]) error {
	for i := range 3 {
		if err := s.Send(&v1.WatchSessionsResponse{Session: &v1.Session{Id: fmt.Sprint(i)}}); err != nil {
			return err
		}
	}
	return nil
}

func serve(t *testing.T, path string) {
	t.Helper()
	serveThat(t, path, boot{})
}

func serveThat(t *testing.T, path string, h portcullisv1connect.BootHandler) {
	t.Helper()
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewBootHandler(h))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, mux) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// three wants a stream of three sessions that ends well.
func three(t *testing.T, st *connect.ServerStreamForClient[v1.WatchSessionsResponse]) {
	t.Helper()
	n := 0
	for st.Receive() {
		n++
	}
	if st.Err() != nil || n != 3 {
		t.Fatal(n, st.Err())
	}
}

func TestCallsAndStreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "boot.sock")
	serve(t, path)
	c := portcullisv1connect.NewBootClient(Client(path), BaseURL)
	got, err := c.GetSession(t.Context(), connect.NewRequest(&v1.GetSessionRequest{}))
	if err != nil || got.Msg.Session.Id != "one" {
		t.Fatal(got, err)
	}
	st, err := c.WatchSessions(t.Context(), connect.NewRequest(&v1.WatchSessionsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	three(t, st)
}

// Lean makes the same calls, and ends a stream that nobody wants any more.
func TestLean(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "boot.sock")
	serve(t, path)
	c := portcullisv1connect.NewBootClient(Lean(), BaseURL)
	for range 3 {
		got, err := c.GetSession(To(t.Context(), path), connect.NewRequest(&v1.GetSessionRequest{}))
		if err != nil || got.Msg.Session.Id != "one" {
			t.Fatal(got, err)
		}
	}
	if _, err := c.Claim(To(t.Context(), path), connect.NewRequest(&v1.ClaimRequest{})); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("an error comes as %v", err)
	}
	if _, err := c.GetSession(t.Context(), connect.NewRequest(&v1.GetSessionRequest{})); err == nil {
		t.Error("a call to no socket")
	}
	if _, err := c.GetSession(To(t.Context(), path+"x"), connect.NewRequest(&v1.GetSessionRequest{})); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("a socket that is not there: %v", err)
	}
	st, err := c.WatchSessions(To(t.Context(), path), connect.NewRequest(&v1.WatchSessionsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	three(t, st)
}

// A call that is given up ends at both ends: before it is answered, and in its stream.
func TestLeanGivesUp(t *testing.T) {
	path, gone := filepath.Join(t.TempDir(), "s", "boot.sock"), make(chan struct{}, 2)
	serveThat(t, path, silent{gone: gone})
	c := portcullisv1connect.NewBootClient(Lean(), BaseURL)
	ctx, cancel := context.WithTimeout(To(t.Context(), path), 50*time.Millisecond)
	defer cancel()
	if _, err := c.GetSession(ctx, connect.NewRequest(&v1.GetSessionRequest{})); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("a call without an answer ends with %v", err)
	}
	<-gone
	ctx, cancel = context.WithCancel(To(t.Context(), path))
	defer cancel()
	st, err := c.WatchSessions(ctx, connect.NewRequest(&v1.WatchSessionsRequest{}))
	if err != nil || !st.Receive() {
		t.Fatal(err)
	}
	cancel()
	if st.Receive() || connect.CodeOf(st.Err()) != connect.CodeCanceled {
		t.Errorf("a stream that was given up ends with %v", st.Err())
	}
	<-gone
	st, err = c.WatchSessions(To(t.Context(), path), connect.NewRequest(&v1.WatchSessionsRequest{}))
	if err != nil || !st.Receive() {
		t.Fatal(err)
	}
	st.Close() // does not wait for the rest, which does not come
	<-gone
}

// silent answers nothing, or one message and no more.
type silent struct {
	portcullisv1connect.UnimplementedBootHandler
	gone chan struct{} // is told when a caller has gone
}

func (s silent) GetSession(ctx context.Context, _ *connect.Request[v1.GetSessionRequest]) (*connect.Response[v1.GetSessionResponse], error) {
	<-ctx.Done()
	s.gone <- struct{}{}
	return nil, ctx.Err()
}

func (s silent) WatchSessions(ctx context.Context, _ *connect.Request[v1.WatchSessionsRequest], st *connect.ServerStream[v1.WatchSessionsResponse]) error {
	err := st.Send(&v1.WatchSessionsResponse{})
	<-ctx.Done()
	s.gone <- struct{}{}
	return err
}

// Nothing is packed on its way from one process of a machine to another.
func TestAnswersAreNotCompressed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "boot.sock")
	serve(t, path)
	c := portcullisv1connect.NewBootClient(Client(path), BaseURL)
	got, err := c.GetSession(t.Context(), connect.NewRequest(&v1.GetSessionRequest{}))
	if err != nil || got.Header().Get("Content-Encoding") != "" {
		t.Fatal(got.Header(), err)
	}
	st, err := c.WatchSessions(t.Context(), connect.NewRequest(&v1.WatchSessionsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for st.Receive() {
	}
	if h := st.ResponseHeader(); st.Err() != nil || h.Get("Connect-Content-Encoding") != "" {
		t.Fatal(h, st.Err())
	}
}

func TestSocketOfADeadProcessIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	serve(t, path)
	if _, err := portcullisv1connect.NewBootClient(Client(path), BaseURL).GetSession(t.Context(), connect.NewRequest(&v1.GetSessionRequest{})); err != nil {
		t.Fatal(err)
	}
}

// A caller whose user id is not named gets no answer: the connection is closed unread.
func TestStrangerIsRefusedByItsCredentials(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: another user's call has to be made")
	}
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "boot.sock")
	serve(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	as := func(uid uint32) error {
		cmd := exec.CommandContext(ctx, "curl", "-sf", "--max-time", "5", "--http2-prior-knowledge", "--unix-socket", path, "-H", "Content-Type: application/json",
			"-d", "{}", "http://unix/portcullis.v1.Boot/GetSession")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd.Run()
	}
	if err := as(0); err != nil {
		t.Fatalf("root is refused (is curl installed?): %v", err)
	}
	if err := as(65534); err == nil {
		t.Fatal("a stranger got an answer")
	}
}

// A service that has gone wrong cannot have its callers read for ever before the body.
func TestLeanReadsNoEndlessHead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n"); err != nil {
			return
		}
		for err == nil { // until the caller has enough
			_, err = io.WriteString(conn, "x: "+strings.Repeat("y", 1000)+"\r\n")
		}
	}()
	c := portcullisv1connect.NewBootClient(Lean(), BaseURL)
	_, err = c.GetSession(To(t.Context(), path), connect.NewRequest(&v1.GetSessionRequest{}))
	if err == nil || !strings.Contains(err.Error(), "whose head has more than") {
		t.Error(err)
	}
}
