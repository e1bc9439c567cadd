package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/gate"
)

// wide makes, approves and loads an image with a file that is put off, and makes a
// container of it that says a word. It returns where that file lies.
func (r *rig) wide(t *testing.T) (id, file string) {
	t.Helper()
	i, err := dockerd.Make("test/wide:1", r.probe, strings.Repeat(t.Name()+"\n", wideFile/len(t.Name())+1))
	if err != nil {
		t.Fatal(err)
	}
	// A place that the image has not: the engine makes it when it makes the container.
	p := plain
	p.Tmpfs = []approval.Tmpfs{{Target: "/scratch", Bytes: 1 << 20}}
	r.approvals.approve(t, i, "task", p)
	out, err := r.docker(t, nil, "create", r.bring(t, i), "say", "a word")
	if err != nil {
		t.Fatal(err, out)
	}
	id = strings.TrimSpace(out)
	dirs, err := r.opt.Engine.Layers(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return id, filepath.Join(dirs.Lower[1], "mark")
}

// words are what a container has said.
func (r *rig) words(t *testing.T, id string) string {
	t.Helper()
	out, err := r.docker(t, nil, "logs", id)
	if err != nil {
		t.Fatal(err, out)
	}
	return out
}

// TestInvariant07_EngineIsHeldUntilFilesAreCompared: the engine makes the container meanwhile, and
// its program does not run.
func TestInvariant07_EngineIsHeldUntilFilesAreCompared(t *testing.T) {
	r := newRig(t)
	id, file := r.wide(t)
	opened, let := held(t, file)
	started := make(chan error, 1)
	go func() {
		out, err := r.docker(t, nil, "start", id)
		if err != nil {
			err = errors.Join(err, errors.New(out))
		}
		started <- err
	}()
	<-opened
	waitFor(t, "the engine's question", 20*time.Second, func() bool {
		r.gated.mu.Lock()
		defer r.gated.mu.Unlock()
		s := r.gated.starts[id]
		return s != nil && s.asked
	})
	// Whoever asks once more, the program or somebody else, is not told to go.
	if why := r.askGate(t, id+"\n"); !strings.Contains(why, ReasonGate) {
		t.Errorf("asked again: %q", why)
	}
	// The engine itself does not answer for a container that it is starting.
	if of := r.programsOf(t, id); len(of) != 1 || strings.Contains(of[0], "/probe") {
		t.Errorf("before its files are compared there are %q", of)
	}
	if made, _ := r.state.container(id); made.Permitted {
		t.Error("permitted before its files are compared")
	}
	let()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the word", 10*time.Second, func() bool { return r.words(t, id) == "a word\n" })
}

// programsOf are the command lines of a container's processes.
func (r *rig) programsOf(t *testing.T, id string) (lines []string) {
	t.Helper()
	all, err := shims()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.id != id || s.where != r.opt.Containerd {
			continue
		}
		pids, _, err := s.children()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				t.Fatal(err)
			}
			// The runtime that asks is one of the shim's, too.
			if !strings.Contains(string(b), "runc-gate") {
				lines = append(lines, string(b))
			}
		}
	}
	return lines
}

// askGate asks in the place of the engine's runtime.
func (r *rig) askGate(t *testing.T, question string) string {
	t.Helper()
	c, err := net.Dial("unix", r.daemon.Gate)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, question); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// TestAttack_WideFileOfAHeldContainer: what was put off is found all the same, nothing runs, and the
// container starts when the file is the image's again.
func TestAttack_WideFileOfAHeldContainer(t *testing.T) {
	r := newRig(t)
	id, file := r.wide(t)
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(at int64, b byte) {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte{b}, at)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(wideFile/2, was[wideFile/2]^1)
	if out, err := r.docker(t, nil, "start", id); err == nil || !strings.Contains(out, ReasonImageStore) {
		t.Errorf("%v: %s", err, out)
	}
	if s, err := r.opt.Engine.Standing(t.Context(), id); err != nil || s.Running {
		t.Errorf("%+v, %v", s, err)
	}
	if made, _ := r.state.container(id); made.Permitted || !r.approvals.has(ReasonImageStore) || r.words(t, id) != "" {
		t.Errorf("permitted %t, in the log %v, it says %q", made.Permitted, r.approvals.reasons(), r.words(t, id))
	}
	write(wideFile/2, was[wideFile/2])
	if out, err := r.docker(t, nil, "start", id); err != nil {
		t.Fatalf("with the image's file: %v: %s", err, out)
	}
	waitFor(t, "the word", 10*time.Second, func() bool { return r.words(t, id) == "a word\n" })
}

// TestAttack_RuntimeThatDoesNotAsk: in the place of the runtime that asks lies one that does not. What it
// has started is ended, and the node starts nothing until an engine is met again.
func TestAttack_RuntimeThatDoesNotAsk(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	id, err := r.docker(t, nil, "create", i.Name, "wait")
	if err != nil {
		t.Fatal(err, id)
	}
	id = strings.TrimSpace(id)
	program := filepath.Join(r.daemon.Dir, "runc-gate")
	if err := os.Rename(program, program+".kept"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Rename(program+".kept", program); err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		r.mark("engine-gate", true, "")
		r.mu.Unlock()
	})
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec runc \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := r.docker(t, nil, "start", id); err == nil || !strings.Contains(out, ReasonGate) {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("ended %s after the engine had started it", r.gone(t, id))
	if !r.approvals.has(ReasonGate) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
	if out, err := r.docker(t, nil, "run", i.Name); err == nil || !strings.Contains(out, ReasonUnfit) {
		t.Errorf("the next: %v: %s", err, out)
	}
}

// TestAttack_StartBehindTheGate: with the engine's socket and a stamp, a container of the guard
// itself is started, another one made and started, and a program put into one that runs.
func TestAttack_StartBehindTheGate(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	made, err := r.docker(t, nil, "create", i.Name, "wait")
	if err != nil {
		t.Fatal(err, made)
	}
	made = strings.TrimSpace(made)
	if err := r.opt.Engine.Start(t.Context(), made); err == nil || !strings.Contains(err.Error(), ReasonGate) {
		t.Errorf("a container of the guard: %v", err)
	}
	if s, err := r.opt.Engine.Standing(t.Context(), made); err != nil || s.Running || !r.approvals.has(ReasonGate) {
		t.Errorf("%+v, %v, in the log %v", s, err, r.approvals.reasons())
	}
	known, err := r.opt.Engine.Image(t.Context(), i.Name)
	if err != nil {
		t.Fatal(err)
	}
	// The step lock keeps the guard from ending it before.
	r.step.Lock()
	id, err := r.opt.Engine.Create(t.Context(), engine.Spec{Image: known, Profile: plain})
	if err == nil {
		err = r.opt.Engine.Start(t.Context(), id)
	}
	r.step.Unlock()
	if err == nil || !strings.Contains(err.Error(), ReasonGate) {
		t.Errorf("a container of nobody: %v", err)
	}
	if out, err := r.docker(t, nil, "start", made); err != nil {
		t.Errorf("afterwards the guard starts it: %v: %s", err, out)
	}
}

// TestGateWithoutQuestion: what is no question is answered with its reason, and stands in the log.
func TestGateWithoutQuestion(t *testing.T) {
	r := newRig(t)
	for _, q := range []string{strings.Repeat("g", 64) + "\n", strings.Repeat("0", 65), strings.Repeat("\x00", 65)} {
		if a := r.askGate(t, q); !strings.HasPrefix(a, "no "+ReasonGate) {
			t.Errorf("%q: %q", q, a)
		}
	}
	if n := len(r.approvals.reasons()); n != 3 || !r.approvals.has(ReasonGate) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
}

// ungated makes the rig one that nobody asks, for this test.
func (r *rig) ungated(t *testing.T) {
	set := func(on bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.opt.Gate = on
	}
	set(false)
	t.Cleanup(func() { set(true) })
}

// TestEngineWithoutGate: everything is compared before the engine is asked to start anything, and what runs
// without a permission is ended.
func TestEngineWithoutGate(t *testing.T) {
	r := newRig(t)
	r.ungated(t)
	id, file := r.wide(t)
	if made, _ := r.state.container(id); made.Spec.Runtime != engine.Runc {
		t.Fatalf("made for %q", made.Spec.Runtime)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), wideFile/2); err != nil {
		t.Fatal(err)
	}
	if out, err := r.docker(t, nil, "start", id); err == nil || !strings.Contains(out, ReasonImageStore) {
		t.Errorf("another file: %v: %s", err, out)
	}
	if made, _ := r.state.container(id); made.Begun {
		t.Error("the engine was asked to start it")
	}
	i := r.image(t, plain)
	if out, err := r.docker(t, nil, "run", "--rm", i.Name); err != nil || out != "hello\n" {
		t.Errorf("%v: %s", err, out)
	}
	out, err := r.docker(t, nil, "create", i.Name, "wait")
	if err != nil {
		t.Fatal(err, out)
	}
	behind := strings.TrimSpace(out)
	// The step lock keeps the guard from ending it before the engine has answered.
	r.step.Lock()
	err = r.opt.Engine.Start(t.Context(), behind)
	r.step.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	r.gone(t, behind)
	if !r.approvals.has(ReasonContainer) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
}

// A container that is not decided on when the guard ends is not let go.
func TestGateEndsWithoutAnswer(t *testing.T) {
	g := &Guard{gated: gated{starts: map[string]*starting{}}}
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.ServeGate(ctx, l) }()
	id := strings.Repeat("a", 64)
	s := g.gated.begin(id)
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, id+"\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the question", 10*time.Second, func() bool { g.gated.mu.Lock(); defer g.gated.mu.Unlock(); return s.asked })
	cancel()
	if b, _ := io.ReadAll(c); string(b) == string(gate.Answer("")) {
		t.Errorf("answered %q", b)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestAttack_StartOfWhatRuns: for a container that runs already the engine does nothing and its runtime asks nobody.
// That is no start that was not let go: it goes on, and so does the node.
func TestAttack_StartOfWhatRuns(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	name := "twice-" + filepath.Base(t.TempDir())
	if out, err := r.docker(t, nil, "run", "-d", "--name", name, i.Name, "wait"); err != nil {
		t.Fatal(err, out)
	}
	for range 2 {
		if out, err := r.docker(t, nil, "start", name); err != nil {
			t.Fatal(err, out)
		}
	}
	id, err := r.opt.Engine.Resolve(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := r.opt.Engine.Standing(t.Context(), id); err != nil || !st.Running || r.fit() != nil {
		t.Errorf("%+v %v %v", st, err, r.fit())
	}
	if out, err := r.docker(t, nil, "rm", "-f", name); err != nil {
		t.Error(err, out)
	}
}
