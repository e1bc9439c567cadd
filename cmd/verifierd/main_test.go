package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/config"
	"portcullis/internal/event/eventtest"
	"portcullis/internal/rpc"
	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// beDaemon makes the test's own program verifierd.
const beDaemon = "PORTCULLIS_TEST_VERIFIERD"

func TestMain(m *testing.M) {
	if os.Getenv(beDaemon) != "" {
		main()
		return
	}
	if name := filepath.Base(os.Args[0]); name == "pxed" || name == "attestd" {
		serviceOfATest(name)
		return
	}
	os.Exit(m.Run())
}

// pi is a verifierd with its engine, as on a Pi.
type pi struct {
	daemon *dockerd.Engine
	config string
	key    ed25519.PrivateKey // of the one approver
	more   []string           // flags
	cmd    *exec.Cmd
	events *eventtest.Buffer
}

func newPi(t *testing.T) *pi {
	t.Helper()
	d, err := dockerd.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &pi{daemon: d, config: filepath.Join(d.Dir, "portcullis.yaml"), key: key}
	d.Gate = p.run(rpc.GateSocket)
	if err := d.Hold(t.Context()); err != nil {
		t.Error(err) // and the engine is closed below
	}
	t.Cleanup(func() {
		p.kill()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(p.events)
		}
	})
	release := base64.StdEncoding.EncodeToString(public)
	text := "run_dir: " + p.run("") + "\nstate_dir: " + filepath.Join(d.Dir, "state") + "\n" + withoutDirs(config.Example(release))
	approvers, err := approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: []ed25519.PublicKey{public}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{p.config: []byte(text), p.approvers(): approvers} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// withoutDirs drops the lines that set where things lie.
func withoutDirs(example string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(example, "\n"), func(l string) bool {
		return strings.HasPrefix(l, "run_dir:") || strings.HasPrefix(l, "state_dir:")
	}), "\n")
}

func (p *pi) run(name string) string { return filepath.Join(p.daemon.Dir, "run", name) }
func (p *pi) approvers() string      { return filepath.Join(p.daemon.Dir, "approvers.json") }

// start starts verifierd and waits until it says that it is ready.
func (p *pi) start(t *testing.T) {
	t.Helper()
	p.events = &eventtest.Buffer{}
	p.cmd = exec.Command(os.Args[0], append([]string{"-config", p.config, "-engine", p.daemon.Socket, "-containerd", p.daemon.Containerd(), "-plugins", p.daemon.Plugins,
		"-approvers", p.approvers()}, p.more...)...)
	p.cmd.Env = append(os.Environ(), beDaemon+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.events, p.events
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.wait(t, `"event":"ready"`)
}

// kill ends it as a crash does.
func (p *pi) kill() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.cmd = nil
	}
}

// wait waits for text in what it tells.
func (p *pi) wait(t *testing.T, text string) {
	t.Helper()
	until(t, text, time.Minute, func() bool { return strings.Contains(p.events.String(), text) })
}

func until(t *testing.T, what string, limit time.Duration, ok func() bool) time.Duration {
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

func (p *pi) docker(t *testing.T, stdin []byte, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", "unix://" + p.run(rpc.GuardSocket)}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("docker (Debian package docker.io, or docker-cli) is missing")
	}
	return strings.TrimSpace(string(out)), err
}

// add hands an approval or a revocation to the running verifierd.
func (p *pi) add(t *testing.T, envelope []byte, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	a, err := rpc.Client(p.run(rpc.VerifierSocket)).Post(rpc.BaseURL+"/approvals", "application/json", bytes.NewReader(envelope))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		var why map[string]any
		json.NewDecoder(a.Body).Decode(&why)
		t.Fatalf("%s %v", a.Status, why)
	}
}

func (p *pi) status(t *testing.T) *v1.GetVerifierStatusResponse {
	t.Helper()
	c := portcullisv1connect.NewVerifierClient(rpc.Client(p.run(rpc.VerifierSocket)), rpc.BaseURL)
	s, err := c.GetVerifierStatus(t.Context(), connect.NewRequest(&v1.GetVerifierStatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return s.Msg
}

// waits counts the processes of `/probe wait` on this machine.
func waits(t *testing.T, mark string) (n int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if b, err := os.ReadFile(f); err == nil && string(b) == "/probe\x00wait\x00"+mark+"\x00" {
			n++
		}
	}
	return n
}

// TestInvariant07_VerifierdKilled: verifierd is killed while a container runs. Nobody
// gets anything from the engine, the container goes on, and the next verifierd takes
// it over without a restart of the engine, and ends it when its image is revoked.
func TestInvariant07_VerifierdKilled(t *testing.T) {
	p := newPi(t)
	p.start(t)
	if err := p.daemon.Start(t.Context(), "--authorization-plugin", dockerd.Plugin); err != nil {
		t.Fatal(err)
	}
	p.wait(t, `"fit":true`)
	p.wait(t, `"held":true`)
	if s := p.status(t); !s.Fit || s.Api == "" || s.SelfTestMs == 0 {
		t.Fatalf("unfit: %v", s)
	}
	program, err := dockerd.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Base(p.daemon.Dir)
	i, err := dockerd.Make("probe:1", program, mark)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := p.docker(t, i.Tar, "load"); err == nil || !strings.Contains(out, approval.ReasonUnapproved) {
		t.Fatalf("loaded before its approval: %s", out)
	}
	read, err := image.Read(t.Context(), bytes.NewReader(i.Tar), t.TempDir(), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	envelope, err := approval.Approval{Schema: approval.Schema, Name: "probe", Version: 1, Purpose: "task", Image: read.Image(),
		Profile: approval.Profile{User: "1:1", Network: approval.NetworkNone, AnyCommand: true,
			Limits: approval.Limits{MemoryBytes: 32 << 20, Pids: 16, MilliCPU: 500}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}.Sign(p.key)
	p.add(t, envelope, err)
	if out, err := p.docker(t, i.Tar, "load"); err != nil || out != "Loaded image: portcullis/approved:probe-1" {
		t.Fatalf("%v %s", err, out)
	}
	id, err := p.docker(t, nil, "run", "-d", "portcullis/approved:probe-1", "wait", mark)
	if err != nil {
		t.Fatal(id)
	}
	until(t, "the container's program", 10*time.Second, func() bool { return waits(t, mark) == 1 })

	p.kill()
	if out, err := p.docker(t, nil, "ps"); err == nil {
		t.Errorf("without verifierd: %s", out)
	}
	if n := waits(t, mark); n != 1 {
		t.Errorf("the container's program is there %d times", n)
	}
	p.start(t)
	p.wait(t, `"fit":true`)
	s := p.status(t)
	if len(s.Containers) != 1 || s.Containers[0].Id != id || s.Containers[0].Approval == "" || !s.Fit {
		t.Fatalf("after its restart: %v", s)
	}
	if n := waits(t, mark); n != 1 {
		t.Errorf("after the restart the container's program is there %d times", n)
	}
	envelope, err = approval.Revocation{Schema: approval.RevocationSchema, Image: i.Config, Why: "test", Issued: time.Now()}.Sign(p.key)
	p.add(t, envelope, err)
	t.Logf("ended %s after the revocation", until(t, "the end of the container", time.Second, func() bool { return waits(t, mark) == 0 }))
}

// Without approvers verifierd runs, and nothing is approved; a file of them that
// cannot be used ends its start, as does a socket that others can reach.
func TestInvariant07_AbsenceIsDenial(t *testing.T) {
	p := newPi(t)
	if err := os.Remove(p.approvers()); err != nil {
		t.Fatal(err)
	}
	p.start(t)
	if !strings.Contains(p.events.String(), `"event":"approvers.none"`) {
		t.Error("nothing was said of the missing approvers")
	}
	if s := p.status(t); s.Fit {
		t.Error("fit without an engine")
	}
	envelope, err := approval.Revocation{Schema: approval.RevocationSchema, Image: "sha256:" + strings.Repeat("0", 64), Why: "test", Issued: time.Now()}.Sign(p.key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := rpc.Client(p.run(rpc.VerifierSocket)).Post(rpc.BaseURL+"/approvals", "application/json", bytes.NewReader(envelope))
	if err != nil {
		t.Fatal(err)
	}
	a.Body.Close()
	if a.StatusCode != http.StatusForbidden {
		t.Errorf("a stranger's revocation: %s", a.Status)
	}
	p.kill()
	for name, damage := range map[string]func() error{
		"approvers": func() error { return os.WriteFile(p.approvers(), []byte("{"), 0o600) },
		"mode 0755": func() error {
			return errors.Join(os.Remove(p.approvers()), os.Chmod(filepath.Dir(p.daemon.Socket), 0o755))
		},
	} {
		if err := damage(); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-config", p.config, "-engine", p.daemon.Socket, "-containerd", p.daemon.Containerd(), "-plugins", p.daemon.Plugins, "-approvers", p.approvers())
		cmd.Env = append(os.Environ(), beDaemon+"=1")
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.ExitCode() != 1 {
			t.Errorf("%s: %v %s", name, err, out)
		}
		os.Remove(p.approvers())
		if err := os.Chmod(filepath.Dir(p.daemon.Socket), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}
