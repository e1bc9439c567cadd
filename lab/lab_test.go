package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis/lab/qemu"
	"portcullis/lab/wire"
)

// labUp runs `portcullis lab up` as its user does and waits until the PC is on.
func labUp(t *testing.T, state, name string, extra ...string) *exec.Cmd {
	t.Helper()
	built, err := testBuilder.Build(context.Background(), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"lab", "up", "--json", "--name", name, "--state", state}, extra...)
	cmd := exec.Command(filepath.Join(built.Bin, "portcullis"), args...)
	cmd.Dir = built.Repository
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := Down(ctx, state, name); err != nil && !errors.Is(err, ErrNoLab) {
			t.Errorf("clean up: %v", err)
		}
	})
	on := make(chan bool, 1)
	go func() {
		in := bufio.NewScanner(out)
		for in.Scan() {
			var e struct{ Event, State string }
			if json.Unmarshal(in.Bytes(), &e) != nil {
				t.Errorf("lab up --json printed %q", in.Text())
			}
			if e.Event == "pc.power" && e.State == "on" {
				on <- true
				break
			}
		}
		io.Copy(io.Discard, out)
		close(on)
	}()
	select {
	case ok := <-on:
		if !ok {
			t.Fatalf("lab up %s ended before the PC was on", name)
		}
	case <-time.After(5 * time.Minute):
		t.Fatalf("lab up %s: the PC is not on after five minutes", name)
	}
	return cmd
}

var testBuilder = &Builder{Repository: ".."}

// gone fails for everything of a lab that is still there.
func gone(t *testing.T, state, name string, r record) {
	t.Helper()
	for _, p := range r.Processes {
		if p.alive() {
			t.Errorf("process %s (%d) is still there", p.Name, p.PID)
		}
	}
	for _, n := range wire.Names(name) {
		if exists("/run/netns/" + n) {
			t.Errorf("namespace %s is still there", n)
		}
	}
	if exists(filepath.Join(state, name)) {
		t.Errorf("state directory is still there")
	}
}

func TestCtrlCLeavesNothingAndTwoLabsRunSideBySide(t *testing.T) {
	state := t.TempDir()
	a := labUp(t, state, "side-a")
	b := labUp(t, state, "side-b", "--firmware", "bios", "--tpm", "pc")
	var records []record
	for _, name := range []string{"side-a", "side-b"} {
		p, err := newPlace(state, name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.load()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Processes) < 5 {
			t.Errorf("%s records %d processes, want world, three services and QEMU", name, len(r.Processes))
		}
		for _, c := range r.Processes {
			if !c.alive() {
				t.Errorf("%s: %s does not run", name, c.Name)
			}
		}
		records = append(records, r)
	}
	if err := exec.Command(a.Path, "lab", "up", "--name", "side-a", "--state", state).Run(); err == nil {
		t.Error("a second lab of the same name was started")
	}
	for i, cmd := range []*exec.Cmd{a, b} {
		cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			t.Errorf("lab up after Ctrl-C: %v", err)
		}
		gone(t, state, records[i].Name, records[i])
	}
}

// TestOwnerKilledLeavesWhatDownRemoves kills `lab up` with SIGKILL: everything it
// started lives on, and lab down finds and ends exactly that.
func TestOwnerKilledLeavesWhatDownRemoves(t *testing.T) {
	state := t.TempDir()
	cmd := labUp(t, state, "orphan")
	p, err := newPlace(state, "orphan")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	r, err := p.load()
	if err != nil {
		t.Fatal(err)
	}
	alive := 0
	for _, c := range r.Processes {
		if c.alive() {
			alive++
		}
	}
	if alive == 0 {
		t.Fatal("nothing outlived the owner: the test tests nothing")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := Down(ctx, state, "orphan"); err != nil {
		t.Fatal(err)
	}
	gone(t, state, "orphan", r)
	if err := Down(ctx, state, "orphan"); !errors.Is(err, ErrNoLab) {
		t.Errorf("a second lab down ended with %v", err)
	}
}

// TestFailedStartLeavesNothing gives the services a configuration that they refuse.
func TestFailedStartLeavesNothing(t *testing.T) {
	state := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	l, err := Start(ctx, Options{Name: "bad", State: state, Builder: testBuilder, Tune: func(s *Settings) { s.ReleaseKey = "bm8ga2V5" }})
	if err == nil {
		l.Close()
		t.Fatal("a lab with a bad configuration started")
	}
	if !strings.Contains(err.Error(), "release_keys") {
		t.Errorf("the error does not name the key: %v", err)
	}
	gone(t, state, "bad", record{})
}

func TestAProcessIDUsedAgainIsNotKilled(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	p := newProcess("sleep", sleep.Process.Pid)
	if !p.alive() {
		t.Fatal("a running process is taken for dead")
	}
	other := p
	other.Start++
	other.kill()
	if !p.alive() {
		t.Fatal("a process with another start time was killed")
	}
}

func TestLogWakesThoseWhoWait(t *testing.T) {
	l := NewLog(nil)
	l.Add(Event{Name: "early"})
	mark := l.Mark()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	got := make(chan Event, 1)
	go func() {
		e, _ := l.Wait(ctx, mark, With("verdict", "state", "trusted"))
		got <- e
	}()
	l.Add(Event{Name: "verdict", Fields: map[string]any{"state": "suspect"}})
	l.Add(Event{Name: "verdict", Fields: map[string]any{"state": "trusted", "n": 1.0}})
	if e := <-got; e.Number("n") != 1 {
		t.Fatalf("woken by %+v", e)
	}
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if _, err := l.Wait(short, mark, Is("early")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("an event before the mark was seen, or %v", err)
	}
}

func TestFollowReadsWhatIsWrittenAndTheRestAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithCancel(context.Background())
	lines := make(chan string, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		Follow(ctx, path, func(b []byte) { lines <- string(b) })
	}()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("one\r\ntw")
	if got := <-lines; got != "one" {
		t.Fatalf("read %q", got)
	}
	f.WriteString("o\nthree\n")
	cancel()
	<-done
	if a, b := <-lines, <-lines; a != "two" || b != "three" {
		t.Fatalf("read %q, %q", a, b)
	}
}

func TestConsoleLinesBecomeEvents(t *testing.T) {
	for _, c := range []struct {
		line, name, key, want string
	}{
		{"portcullis: stage=root t=10.04 bytes=112136192 seconds=2.94", "pc.stage", "bytes", "112136192"},
		{"[    5.1] x portcullis: stage=init t=6.49", "pc.stage", "stage", "init"},
		{`portcullis: failed stage=manifest reason=manifest-signature detail="none of the keys" x=1`, "pc.failed", "detail", "none of the keys"},
		{"portcullis: failed stage=root reason=root-fetch detail=no answer at all", "pc.failed", "detail", "no answer at all"},
		{"BdsDxe: starting Boot0002 \"UEFI HTTPv4\"", "pc.stage", "stage", "firmware-start"},
		{"\x1b[2J>>Start PXE over IPv4.", "pc.stage", "stage", "firmware-network"},
		{"Kernel panic - not syncing: VFS", "pc.failed", "reason", "kernel-panic"},
		{"nothing of ours", "", "", ""},
	} {
		e, ok := ParseConsole(c.line, time.Unix(1, 0))
		if ok != (c.name != "") || ok && (e.Name != c.name || e.Text(c.key) != c.want) {
			t.Errorf("%q: %+v", c.line, e)
		}
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", "A", "1a", "../x", "a/b", strings.Repeat("a", 25)} {
		if _, err := newPlace("", name); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := newPlace("/"+strings.Repeat("x", 100), "lab"); err == nil {
		t.Error("a state directory too long for sockets was accepted")
	}
}

func TestEachLabHasItsOwnAddress(t *testing.T) {
	if a, b := macOf("a"), macOf("b"); a == b || !strings.HasPrefix(a, "52:54:00:") {
		t.Fatalf("%s %s", a, b)
	}
	if _, err := qemu.ParseFirmware(string(Options{}.Firmware)); err == nil {
		t.Fatal("the zero firmware is a firmware")
	}
}

func FuzzParseConsole(f *testing.F) {
	f.Add("portcullis: stage=root t=10.04 bytes=1")
	f.Add(`portcullis: failed stage=x reason=y detail="quoted \" text"`)
	f.Add("portcullis: stage= = =\"")
	f.Fuzz(func(t *testing.T, line string) {
		e, ok := ParseConsole(line, time.Unix(1, 0))
		if ok && (e.Name == "" || e.Fields == nil) {
			t.Fatalf("%q: %+v", line, e)
		}
	})
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-01T00:00:00Z","event":"ready","n":1}`))
	f.Add([]byte("panic: runtime error"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if e, ok := ParseEvent(line, "x"); ok && (e.Name == "" || e.Source != "x") {
			t.Fatalf("%q: %+v", line, e)
		}
	})
}
