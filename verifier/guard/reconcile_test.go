package guard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
)

// gone waits until the engine does not have the container.
func (r *rig) gone(t *testing.T, id string) time.Duration {
	t.Helper()
	return waitFor(t, "the end of "+id, 10*time.Second, func() bool {
		_, err := r.opt.Engine.Resolve(t.Context(), id)
		return err != nil
	})
}

// TestAttack_ContainerBehindTheGuard: somebody who has the engine's own socket and a
// stamp starts a container with a runtime that asks nobody; it is ended and reported.
func TestAttack_ContainerBehindTheGuard(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	image, err := r.opt.Engine.Image(t.Context(), i.Name)
	if err != nil {
		t.Fatal(err)
	}
	profile := plain
	profile.AnyCommand, profile.Command = false, []string{"/probe", "wait"}
	// The step lock is what keeps the guard from looking too early.
	r.step.Lock()
	id, err := r.opt.Engine.Create(t.Context(), engine.Spec{Image: image, Profile: profile, Runtime: engine.Runc})
	if err == nil {
		err = r.opt.Engine.Start(t.Context(), id)
	}
	r.step.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ended %s after its start", r.gone(t, id))
	if !r.approvals.has(ReasonContainer) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
}

// TestAttack_EndedContainerStartedBehindTheGuard: a permission is for one start. Who starts a container that has
// ended once more, past the guard, has it ended; the guard itself may start it again.
func TestAttack_EndedContainerStartedBehindTheGuard(t *testing.T) {
	r := newRig(t)
	r.ungated(t) // at the gate it would be refused
	i := r.image(t, plain)
	name := "ended-" + filepath.Base(t.TempDir())
	if out, err := r.docker(t, nil, "run", "-d", "--name", name, i.Name, "wait"); err != nil {
		t.Fatal(err, out)
	}
	id, err := r.opt.Engine.Resolve(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	seen := func() bool {
		if err := r.containers(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, still := r.still.Load(id)
		return still
	}
	for range 2 {
		if out, err := r.docker(t, nil, "kill", name); err != nil {
			t.Fatal(err, out)
		}
		waitFor(t, "a look at what has ended", 10*time.Second, seen)
		if out, err := r.docker(t, nil, "start", name); err != nil {
			t.Fatal(err, out)
		}
		still := seen()
		if st, err := r.opt.Engine.Standing(t.Context(), id); err != nil || !st.Running || still {
			t.Fatalf("the guard's own start: %+v %v, taken for ended %t", st, err, still)
		}
	}
	if r.approvals.has(ReasonContainer) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
	if out, err := r.docker(t, nil, "kill", name); err != nil {
		t.Fatal(err, out)
	}
	waitFor(t, "a look at what has ended", 10*time.Second, seen)
	if err := r.opt.Engine.Start(t.Context(), id); err != nil && !errors.Is(err, engine.ErrNotFound) {
		t.Fatal(err)
	}
	r.gone(t, id)
	if !r.approvals.has(ReasonContainer) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
	waitFor(t, "a look at what is gone", 10*time.Second, func() bool { return !seen() })
}

// TestAttack_ProgramInContainer: an exec ends the container that it is in.
func TestAttack_ProgramInContainer(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	id, err := r.docker(t, nil, "run", "-d", i.Name, "wait")
	if err != nil {
		t.Fatal(err, id)
	}
	id = strings.TrimSpace(id)
	if out, err := r.docker(t, nil, "exec", id, "/probe", "say", "in"); err == nil {
		t.Errorf("exec through the guard: %s", out)
	}
	a, err := r.opt.Engine.Forward(t.Context(), "POST", "/v1.41/containers/"+id+"/exec", []byte(`{"Cmd":["/probe","wait"]}`))
	if err != nil || a.StatusCode != 201 {
		t.Fatalf("%v %v", a, err)
	}
	a.Body.Close()
	t.Logf("ended %s after the exec", r.gone(t, id))
	if !r.approvals.has(ReasonProgram) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
}

// TestAttack_ContainerChangedWhileItRuns: docker update with a stamp.
func TestAttack_ContainerChangedWhileItRuns(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	id, err := r.docker(t, nil, "run", "-d", i.Name, "wait")
	if err != nil {
		t.Fatal(err, id)
	}
	id = strings.TrimSpace(id)
	a, err := r.opt.Engine.Forward(t.Context(), "POST", "/v1.41/containers/"+id+"/update", []byte(`{"PidsLimit":10000}`))
	if err != nil {
		t.Fatal(err)
	}
	a.Body.Close() // an error where the container was ended before the engine had answered
	t.Logf("ended %s after the update", r.gone(t, id))
	if !r.approvals.has(ReasonDiffers) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
}

// TestAttack_ImageBehindTheGuard: an image that was loaded with a stamp goes.
func TestAttack_ImageBehindTheGuard(t *testing.T) {
	r := newRig(t)
	i, err := dockerd.Make("test/behind:1", r.probe, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.opt.Engine.Load(t.Context(), bytes.NewReader(i.Tar)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the image", 10*time.Second, func() bool {
		_, err := r.opt.Engine.Image(t.Context(), i.Name)
		return err != nil
	})
	if !r.approvals.has(ReasonUnknownImage) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
}

// A verifier that comes back finds its containers, and goes on ending what is revoked.
func TestGuardComesBack(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	id, err := r.docker(t, nil, "run", "-d", i.Name, "wait")
	if err != nil {
		t.Fatal(err, id)
	}
	id = strings.TrimSpace(id)
	again, err := New(r.opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	again.reconcile(t.Context())
	if _, err := r.opt.Engine.Resolve(t.Context(), id); err != nil {
		t.Fatalf("a running container was ended: %v", err)
	}
	if again.fit() == nil {
		t.Error("fit before a self-test")
	}
	// What it does not remember is a stranger's.
	lost := r.opt
	lost.StateDir = t.TempDir()
	if again, err = New(lost); err != nil {
		t.Fatal(err)
	}
	again.reconcile(context.Background())
	r.gone(t, id)
}

// A program of the engine that changes makes the node unfit: before an engine was met,
// when its bytes have not been read, and afterwards, when the same bytes are no change.
func TestChangedProgram(t *testing.T) {
	for name, met := range map[string]bool{"no engine was met": false, "an engine was met": true} {
		t.Run(name, func(t *testing.T) { changedProgram(t, met) })
	}
}

func changedProgram(t *testing.T, met bool) {
	file := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(file, []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := newApprovals(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	g, err := New(Options{Approvals: a, StateDir: t.TempDir(), Binaries: []string{file, file + ".missing"}})
	if err != nil {
		t.Fatal(err)
	}
	if met {
		if err := g.measure(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("one"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g.programs()
	if a.has(ReasonBinary) {
		t.Error("an unchanged program was reported")
	}
	if err := os.WriteFile(file, []byte("two"), 0o755); err != nil {
		t.Fatal(err)
	}
	g.programs()
	if err := g.measure(); err != nil {
		t.Fatal(err)
	}
	g.programs()
	if n := len(a.reasons()); n != 1 || !a.has(ReasonBinary) {
		t.Errorf("reported %d times: %v", n, a.reasons())
	}
	if err := g.fit(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("fit: %v", err)
	}
}

// An unreadable state file is no state.
func TestUnreadableStateIsEmpty(t *testing.T) {
	dir := t.TempDir()
	for _, b := range []string{"", "{", `{"version":2,"images":{"a":{}}}`} {
		if err := os.WriteFile(filepath.Join(dir, "guard.json"), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openState(dir)
		if err != nil || len(s.images()) != 0 {
			t.Errorf("%q: %v %v", b, s, err)
		}
	}
	s, err := openState(dir)
	if err == nil {
		err = s.change(func(f *stateFile) { f.Images["x"] = loadedImage{Image: approval.Image{Config: "x"}} })
	}
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(s.images())
	if again, err := openState(dir); err != nil || len(again.images()) != 1 {
		t.Errorf("%s: %v", b, err)
	}
}

// racing is an engine that lists a container and, before that arrives, does what was asked
// for in the meantime.
type racing struct {
	listed
	there     string
	meanwhile func()
}

func (r *racing) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.Method != http.MethodGet || !strings.HasSuffix(q.URL.Path, "/containers/json") {
		r.listed.ServeHTTP(w, q)
		return
	}
	if r.meanwhile != nil {
		r.meanwhile()
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode([]map[string]any{{"Id": r.there, "ImageID": "sha256:x", "State": "exited"}})
}

// TestInvariant07_RemovedWhileListed: a container that the guard removes while the engine lists it is
// no stranger. One that it never made is, and so is one that is still there the next time.
func TestInvariant07_RemovedWhileListed(t *testing.T) {
	own := strings.Repeat("a", 64)
	for name, made := range map[string]bool{"the guard made it": true, "nobody knows it": false} {
		e := &racing{there: own}
		g := before(t, e, func(*Options) {})
		if made {
			if err := g.state.change(func(f *stateFile) { f.Containers[own] = madeByGuard{Own: true, Permitted: true} }); err != nil {
				t.Fatal(err)
			}
			e.meanwhile = func() {
				if err := g.state.change(func(f *stateFile) { delete(f.Containers, own) }); err != nil {
					t.Error(err)
				}
			}
		}
		log := g.opt.Approvals.(*approvals)
		for _, want := range []bool{!made, true} {
			if err := g.containers(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := log.has(ReasonContainer); got != want {
				t.Errorf("%s: reported %t, want %t: %v", name, got, want, log.reasons())
			}
		}
	}
}
