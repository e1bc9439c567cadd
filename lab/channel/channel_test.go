package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test program play hpc-lab in the guest.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "pipe" {
		if err := Tool(context.Background(), os.Stdin, os.Stdout, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestQuestionsReachASocketInTheGuest(t *testing.T) {
	sock := guestBehind(t)
	path := filepath.Join(t.TempDir(), "service.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, b)
	})}
	go srv.Serve(l)
	defer srv.Close()
	client := &http.Client{Transport: &Transport{Channel: sock, Pipe: []string{os.Args[0], "pipe"}, Path: path}}
	for range 2 {
		r, err := client.Post("http://unix/a/b", "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || string(b) != "POST /a/b body" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	srv.Close()
	if _, err := client.Get("http://unix/"); err == nil || !strings.Contains(err.Error(), "service.sock") {
		t.Fatalf("nobody listens: %v", err)
	}
}

// guestBehind runs a guest whose port is a unix socket, as QEMU's chardev makes
// it: every host that connects reaches the same guest.
func guestBehind(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lab.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// One host at a time; a closed one reads as EOF and is waited for once.
			one, stop := context.WithCancel(ctx)
			Serve(one, &untilEOF{c, stop}, time.Millisecond)
			c.Close()
		}
	}()
	return path
}

type untilEOF struct {
	net.Conn
	stop context.CancelFunc
}

func (u *untilEOF) Read(p []byte) (int, error) {
	n, err := u.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		u.stop()
	}
	return n, err
}

func TestCommandsRunAndAnswer(t *testing.T) {
	sock := guestBehind(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, c := range []struct {
		name  string
		req   Request
		exit  int
		out   string
		error string
	}{
		{"exit code and both streams", Request{Argv: []string{"sh", "-c", "echo out; exit 7"}}, 7, "out\n", ""},
		{"input", Request{Argv: []string{"cat"}, Stdin: []byte("given")}, 0, "given", ""},
		{"big answer", Request{Argv: []string{"head", "-c", "3000000", "/dev/zero"}}, 0, strings.Repeat("\x00", 3000000), ""},
		{"no such program", Request{Argv: []string{"/does/not/exist"}}, -1, "", "no such file"},
		{"too slow", Request{Argv: []string{"sleep", "5"}, LimitMS: 50}, -1, "", "killed after 50ms"},
		{"a child in the background is not waited for", Request{Argv: []string{"sh", "-c", "sleep 5 & echo left"}}, 0, "left\n", ""},
		{"no words", Request{}, -1, "", "argv"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Run(ctx, sock, c.req)
			if err != nil {
				t.Fatal(err)
			}
			if got.Exit != c.exit || string(got.Stdout) != c.out || !strings.Contains(got.Error, c.error) {
				t.Errorf("exit %d, %d bytes, error %q; want %d, %d bytes, %q", got.Exit, len(got.Stdout), got.Error, c.exit, len(c.out), c.error)
			}
		})
	}
}

func TestNoAnswerEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, path, Request{Argv: []string{"true"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ended with %v, want the deadline", err)
	}
}

func TestPortIsFoundByName(t *testing.T) {
	sys := t.TempDir()
	for dev, name := range map[string]string{"vport1p1": "other", "vport2p1": "org.portcullis.lab"} {
		d := filepath.Join(sys, "class/virtio-ports", dev)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "name"), []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := FindPort(sys, "org.portcullis.lab"); err != nil || got != "/dev/vport2p1" {
		t.Fatalf("found %q, %v", got, err)
	}
	if _, err := FindPort(sys, "absent"); err == nil {
		t.Fatal("an absent port was found")
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"id":"a","argv":["true"]}`))
	f.Add([]byte(`{"id":"a","argv":["cat"],"stdin":"aGk=","limit_ms":5}`))
	f.Add([]byte(`{"id":"","argv":[]}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := ParseRequest(line)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Fatalf("untyped refusal: %v", err)
			}
			return
		}
		if r.ID == "" || len(r.Argv) == 0 || r.LimitMS < 0 {
			t.Fatalf("invalid request accepted: %+v", r)
		}
	})
}
