package guard

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
	"portcullis/internal/rpc"
	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/image"
	"portcullis/verifier/lock"
	"portcullis/verifier/record"
	"portcullis/verifier/stamp"
	"portcullis/verifier/verity"
)

// rig is a guard in front of a real engine.
type rig struct {
	*Guard
	daemon    *dockerd.Engine
	approvals *approvals
	press     *stamp.Press
	socket    string // the guard's
	log       *eventtest.Buffer
	kernel    *kernel // its fs-verity, as far as the guard sees it
	probe     []byte
	cancel    context.CancelFunc
	done      sync.WaitGroup
	plugin    func() // ends the plugin
}

var (
	shared   *rig
	sharedMu sync.Mutex
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(shimEnv); kind != "" {
		playShim(kind)
	}
	code := m.Run()
	if shared != nil {
		if err := shared.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// newRig gives the engine that the tests of this package share, empty.
func newRig(t testing.TB) *rig {
	t.Helper()
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if shared == nil {
		r, err := start()
		if err != nil {
			t.Fatal(err)
		}
		shared = r
	}
	shared.approvals.reset()
	t.Cleanup(func() {
		if err := shared.fit(); err != nil && t.Failed() {
			log, _ := os.ReadFile(shared.daemon.Log())
			t.Logf("%v\n%s", err, log[max(0, len(log)-2000):])
		}
	})
	waitFor(t, "a fit node", 10*time.Second, func() bool { return shared.fit() == nil })
	mark := len(shared.log.String())
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(shared.log.String()[mark:])
		}
	})
	return shared
}

func start() (*rig, error) {
	ctx, cancel := context.WithCancel(context.Background())
	d, err := dockerd.Prepare()
	if err != nil {
		cancel()
		return nil, err
	}
	a, err := newApprovals(filepath.Join(d.Dir, "approvals"))
	if err != nil {
		cancel()
		return nil, err
	}
	r := &rig{daemon: d, approvals: a, press: stamp.New(time.Now), socket: filepath.Join(d.Dir, "guard.sock"),
		log: &eventtest.Buffer{}, kernel: &kernel{Files: verity.Kernel{}}, cancel: cancel}
	r.probe, err = dockerd.Probe(ctx)
	if err == nil {
		err = r.lockUp(ctx)
	}
	if err == nil {
		err = d.Hold(ctx)
	}
	if err == nil {
		err = d.Start(ctx, "--authorization-plugin", dockerd.Plugin)
	}
	if err == nil {
		err = r.guard(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// lockUp starts the second lock. It can be ended and started again.
func (r *rig) lockUp(ctx context.Context) error {
	l, err := rpc.Listen(filepath.Join(r.daemon.Plugins, dockerd.Plugin+".sock"), nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		rpc.Serve(ctx, l, lock.Handler(r.press, func(method, uri, reason, detail string) {
			r.Refuse(record.Refusal{Action: ActionEngine, Reason: reason, Detail: method + " " + uri + ": " + detail, Caller: engineItself})
		}))
	}()
	r.plugin = func() { cancel(); <-ended }
	return nil
}

func (r *rig) guard(ctx context.Context) error {
	began := time.Now()
	c, err := engine.New(r.daemon.Socket, r.press)
	if err != nil {
		return err
	}
	r.Guard, err = New(Options{Engine: c, Approvals: r.approvals, Read: func(ctx context.Context, from io.Reader, o image.Options) (*image.Archive, error) {
		return image.Read(ctx, from, r.daemon.Dir, o)
	}, StateDir: filepath.Join(r.daemon.Dir, "state"), Kept: filepath.Join(r.daemon.Dir, "state", "images"), Socket: r.socket, Door: r.daemon.Socket, Gate: true,
		Containerd: r.daemon.Containerd(), Verity: r.kernel, Tagger: verity.NewTagger(), Sample: 200 * time.Millisecond, Clock: clock.Real{}, Events: event.NewJSON(r.log, "guard", time.Now)})
	if err != nil {
		return err
	}
	l, err := rpc.Listen(r.socket, nil)
	if err != nil {
		return err
	}
	asked, err := rpc.Listen(r.daemon.Gate, nil)
	if err != nil {
		return err
	}
	r.done.Add(3)
	go func() { defer r.done.Done(); r.ServeGate(ctx, asked) }()
	go func() { defer r.done.Done(); r.Serve(ctx, l) }()
	go func() { defer r.done.Done(); r.Run(ctx) }()
	for r.fit() != nil {
		if time.Since(began) > 30*time.Second {
			return fmt.Errorf("%w\n%s", r.fit(), r.log)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

func (r *rig) close() error {
	r.cancel()
	r.done.Wait()
	return r.daemon.Close()
}

// docker runs Docker's own client against the guard.
func (r *rig) docker(t testing.TB, stdin io.Reader, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", "unix://" + r.socket}, args...)...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("docker (Debian package docker.io, or docker-cli) is missing")
	}
	return string(out), err
}

// image makes, approves and loads an image of its own.
func (r *rig) image(t testing.TB, profile approval.Profile) dockerd.Image {
	t.Helper()
	i, err := dockerd.Make("test/"+strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))+":1", r.probe, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	r.approvals.approve(t, i, "task", profile)
	out, err := r.docker(t, bytes.NewReader(i.Tar), "load")
	name, ok := strings.CutPrefix(strings.TrimSpace(out), "Loaded image: ")
	if err != nil || !ok {
		t.Fatalf("%v: %s", err, out)
	}
	i.Name = name
	return i
}

var plain = approval.Profile{User: "1000:1000", Network: approval.NetworkNone, AnyCommand: true,
	Limits: approval.Limits{MemoryBytes: 64 << 20, Pids: 32, MilliCPU: 1000}}

// send sends one request to a socket and returns status and body.
func send(t testing.TB, socket, method, uri, contentType string, body []byte) (int, string) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\n", method, uri)
	if contentType != "" {
		head += "Content-Type: " + contentType + "\r\n"
	}
	if body != nil {
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	c.Write([]byte(head + "\r\n"))
	c.Write(body)
	a, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, uri, err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

// waitFor asks until ok.
func waitFor(t testing.TB, what string, limit time.Duration, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %s", what, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

// approvals is a log of approvals whose answers a test can see, and break.
type approvals struct {
	*record.Record
	key    ed25519.PrivateKey // of the one approver
	mu     sync.Mutex
	no     []record.Refusal
	given  []approval.Request
	broken bool // nothing can be written
	next   uint64
}

func newApprovals(dir string) (*approvals, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	_, logKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	r, err := record.Open(record.Options{Dir: dir, Key: logKey, Now: time.Now,
		Approvers: approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}}})
	return &approvals{Record: r, key: key}, err
}

func (a *approvals) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.no, a.given, a.broken = nil, nil, false
}

// approve signs an approval of a name of its own.
func (a *approvals) approve(t testing.TB, i dockerd.Image, purpose string, p approval.Profile) {
	t.Helper()
	a.approveImage(t, a.identity(t, i), purpose, p)
}

func (a *approvals) approveImage(t testing.TB, i approval.Image, purpose string, p approval.Profile) {
	t.Helper()
	a.next++
	envelope, err := approval.Approval{Schema: approval.Schema, Name: fmt.Sprintf("test-%d", a.next), Version: 1, Purpose: purpose,
		Image: i, Profile: p, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}.Sign(a.key)
	if err == nil {
		_, err = a.Add(envelope)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (a *approvals) revoke(t *testing.T, config string) {
	t.Helper()
	envelope, err := approval.Revocation{Schema: approval.RevocationSchema, Image: config, Why: "test", Issued: time.Now()}.Sign(a.key)
	if err == nil {
		_, err = a.Add(envelope)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (a *approvals) Decide(q approval.Request) (approval.Permission, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return approval.Permission{}, errors.New("no space left on device")
	}
	p, err := a.Record.Decide(q)
	if err != nil {
		a.no = append(a.no, record.Refusal{Action: string(q.Action), Reason: approval.Reason(err)})
		return p, err
	}
	a.given = append(a.given, q)
	return p, nil
}

func (a *approvals) Refuse(r record.Refusal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return errors.New("no space left on device")
	}
	err := a.Record.Refuse(r)
	if err == nil {
		a.no = append(a.no, r)
	}
	return err
}

// reasons that stand in the log.
func (a *approvals) reasons() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.no {
		out = append(out, r.Reason)
	}
	return out
}

func (a *approvals) has(reason string) bool { return slices.Contains(a.reasons(), reason) }

// identity is what the reader of archives makes of an image.
func (a *approvals) identity(t testing.TB, i dockerd.Image) approval.Image {
	t.Helper()
	read, err := image.Read(t.Context(), bytes.NewReader(i.Tar), t.TempDir(), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	return read.Image()
}
