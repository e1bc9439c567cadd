package guard

import (
	"bytes"
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/stamp"
)

// TestInvariant07_ApprovedImageRuns: with its output and its exit code, as it was approved.
func TestInvariant07_ApprovedImageRuns(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	out, err := r.docker(t, nil, "run", "--rm", i.Name, "say", "one", "two")
	if err != nil || out != "one two\n" {
		t.Fatalf("%q %v", out, err)
	}
	_, err = r.docker(t, nil, "run", "--rm", i.Name, "exit", "7")
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 7 {
		t.Errorf("ended with %v, want 7", err)
	}
	out, err = r.docker(t, nil, "run", "--rm", i.Name, "look")
	if err != nil {
		t.Fatal(err, out)
	}
	for _, want := range []string{"CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2", "Uid: 1000 1000 1000 1000",
		"read-only file system", "link lo"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Count(out, "link ") != 1 {
		t.Errorf("more than a loopback:\n%s", out)
	}
	if g := r.approvals.given; len(g) != 4 || g[0].Action != approval.Load || g[1].Action != approval.Start {
		t.Errorf("permissions: %+v", g)
	}
}

// TestInvariant07_OnlyWhatWasApprovedRuns: each other image, purpose and profile is refused.
func TestInvariant07_OnlyWhatWasApprovedRuns(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	other, err := dockerd.Make("test/other:1", r.probe, "other")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := r.docker(t, bytes.NewReader(other.Tar), "load"); err == nil || !strings.Contains(out, approval.ReasonUnapproved) {
		t.Errorf("an unapproved image was loaded: %s", out)
	}
	for _, c := range []struct {
		args   []string
		reason string
	}{
		{[]string{"pull", "test/other:1"}, ReasonEndpoint},
		{[]string{"run", "test/other:1"}, ReasonImage},
		{[]string{"create", "--pull", "never", "test/other:1"}, ReasonImage},
		{[]string{"create", "--label", "portcullis.purpose=service", i.Name}, approval.ReasonPurpose},
		{[]string{"create", "--user", "0:0", i.Name}, approval.ReasonProfile},
		{[]string{"create", "--cap-add", "NET_RAW", i.Name}, approval.ReasonProfile},
		{[]string{"create", "--network", "host", i.Name}, approval.ReasonProfile},
		{[]string{"create", "--memory", "128m", i.Name}, approval.ReasonProfile},
		{[]string{"create", "--pids-limit", "1000", i.Name}, approval.ReasonProfile},
		{[]string{"create", "--cpus", "2", i.Name}, approval.ReasonProfile},
		{[]string{"create", "--env", "LD_PRELOAD=/x", i.Name}, approval.ReasonProfile},
		{[]string{"create", "--privileged", i.Name}, ReasonField},
		{[]string{"create", "--volume", "/:/host", i.Name}, ReasonField},
	} {
		if out, err := r.docker(t, nil, c.args...); err == nil || !strings.Contains(out, c.reason) {
			t.Errorf("docker %s: %v, %s; want %s", strings.Join(c.args, " "), err, out, c.reason)
		}
		if !r.approvals.has(c.reason) {
			t.Errorf("docker %s: not in the log: %v", strings.Join(c.args, " "), r.approvals.reasons())
		}
	}
	if len(r.approvals.given) != 1 {
		t.Errorf("permissions: %+v", r.approvals.given)
	}
}

// TestAttack_NameByDigestIsMoved: the name with an image's digest in it runs that image or none.
func TestAttack_NameByDigestIsMoved(t *testing.T) {
	r := newRig(t)
	one := r.image(t, plain)
	other, err := dockerd.Make("test/other:1", r.probe, "other")
	if err != nil {
		t.Fatal(err)
	}
	r.approvals.approve(t, other, "task", plain)
	if out, err := r.docker(t, bytes.NewReader(other.Tar), "load"); err != nil {
		t.Fatal(err, out)
	}
	name := digestName(one.Config)
	if out, err := r.docker(t, nil, "run", "--rm", name, "say", "one"); err != nil || out != "one\n" {
		t.Fatalf("%q %v", out, err)
	}
	held, err := r.opt.Engine.Image(t.Context(), digestName(other.Config))
	if err == nil {
		err = r.opt.Engine.Tag(t.Context(), held.ID, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{name, "docker.io/" + name} {
		if out, err := r.docker(t, nil, "run", "--rm", n, "say", "one"); err == nil || !strings.Contains(out, ReasonImageStore) {
			t.Errorf("%s: %v, %s; want %s", n, err, out, ReasonImageStore)
		}
	}
	if out, err := r.docker(t, nil, "run", "--rm", digestName(other.Config), "say", "other"); err != nil || out != "other\n" {
		t.Errorf("%q %v", out, err)
	}
}

// A revocation ends what runs within a second.
func TestRevocationEndsContainers(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	id, err := r.docker(t, nil, "run", "-d", i.Name, "wait")
	if err != nil {
		t.Fatal(err, id)
	}
	r.approvals.revoke(t, i.Config)
	took := waitFor(t, "the end of the container", time.Second, func() bool { return r.approvals.has(approval.ReasonRevoked) })
	waitFor(t, "its removal", 5*time.Second, func() bool { _, ok := r.state.container(strings.TrimSpace(id)); return !ok })
	t.Logf("killed %s after the revocation", took)
	if out, err := r.docker(t, nil, "run", i.Name); err == nil || !strings.Contains(out, approval.ReasonRevoked) {
		t.Errorf("a revoked image runs: %s", out)
	}
}

// What cannot be written down does not happen.
func TestWithoutLogNothingHappens(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	r.approvals.mu.Lock()
	r.approvals.broken = true
	r.approvals.mu.Unlock()
	for _, args := range [][]string{{"run", "--rm", i.Name}, {"build", "-"}, {"create", "--privileged", i.Name}} {
		if out, err := r.docker(t, nil, args...); err == nil {
			t.Errorf("docker %v: %s", args, out)
		}
	}
	if out, err := r.docker(t, bytes.NewReader(i.Tar), "load"); err == nil {
		t.Errorf("load: %s", out)
	}
}

// TestEngineSocketIsLocked: whoever reaches the engine's own socket gets nothing.
func TestEngineSocketIsLocked(t *testing.T) {
	r := newRig(t)
	r.image(t, plain)
	for _, c := range [][2]string{{"GET", "/_ping"}, {"GET", "/v1.41/info"}, {"POST", "/v1.41/images/load"}, {"POST", "/v1.41/containers/create"},
		{"POST", "/build"}, {"POST", "/v1.41/commit?container=x"}, {"POST", "/session"}, {"POST", "/grpc"}, {"POST", "/v1.41/swarm/init"}} {
		code, body := send(t, r.daemon.Socket, c[0], c[1], "application/json", []byte(`{"Image":"x"}`))
		if code != 403 || !strings.Contains(body, stamp.ReasonMissing) {
			t.Errorf("%v: %d %s", c, code, body)
		}
	}
	if got := r.approvals.reasons(); len(got) != 9 || slices.Contains(got, "") {
		t.Errorf("in the log: %v", got)
	}
}

// TestPluginDead: without the second lock every call is refused, containers go on,
// and all is well again when it is back.
func TestPluginDead(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	id, err := r.docker(t, nil, "run", "-d", i.Name, "wait")
	if err != nil {
		t.Fatal(err, id)
	}
	r.plugin()
	type result struct {
		code int
		body string
	}
	// Engines ask a plugin that is away again and again, for 15 s, and refuse then.
	direct := make(chan result, 1)
	go func() {
		code, body := send(t, r.daemon.Socket, "GET", "/v1.41/containers/json", "", nil)
		direct <- result{code, body}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.opt.Engine.Start(ctx, strings.TrimSpace(id)); err == nil {
		t.Error("without the plugin the engine does what the verifier asks")
	}
	select {
	case a := <-direct:
		t.Errorf("without the plugin: %+v", a)
	default:
	}
	if err := r.lockUp(context.Background()); err != nil {
		t.Fatal(err)
	}
	if a := <-direct; a.code != 403 {
		t.Errorf("without the plugin: %+v", a)
	}
	waitFor(t, "the engine", 10*time.Second, func() bool {
		out, err := r.docker(t, nil, "ps", "-q", "--no-trunc")
		return err == nil && strings.Contains(out, strings.TrimSpace(id))
	})
	if out, err := r.docker(t, nil, "kill", strings.TrimSpace(id)); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
