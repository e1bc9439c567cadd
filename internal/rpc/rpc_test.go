package rpc

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewBootHandler(boot{}))
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
	n := 0
	for st.Receive() {
		n++
	}
	if st.Err() != nil || n != 3 {
		t.Fatal(n, st.Err())
	}
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
