package gate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const asProgram = "GATE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Main(os.Args))
	}
	os.Exit(m.Run())
}

var anID = strings.Repeat("0123456789abcdef", 4)

func TestCommandLines(t *testing.T) {
	global := []string{"--root", "/run/r", "--log", "/l/log.json", "--log-format=json", "--systemd-cgroup"}
	for _, c := range []struct {
		words string
		want  command
		err   error
	}{
		{"create --bundle /b --pid-file /p " + anID, command{name: "create"}, nil},
		{"start " + anID, command{name: "start", id: anID}, nil},
		{"delete --force " + anID, command{name: "delete"}, nil},
		{"kill --all " + anID + " 9", command{name: "kill"}, nil},
		{"update --resources - " + anID, command{name: "update"}, nil},
		{"", command{}, nil},
		{"start", command{name: "start"}, ErrCommand},
		{"start --detach " + anID, command{name: "start"}, ErrCommand},
		{"start " + anID + " " + anID, command{name: "start"}, ErrCommand},
		{"start " + anID[1:], command{name: "start"}, ErrCommand},
		{"start " + strings.ToUpper(anID), command{name: "start"}, ErrCommand},
		{"exec --process /p " + anID, command{name: "exec"}, ErrRefused},
		{"run " + anID, command{name: "run"}, ErrRefused},
		{"restore " + anID, command{name: "restore"}, ErrRefused},
		{"checkpoint " + anID, command{name: "checkpoint"}, ErrRefused},
		{"Start " + anID, command{name: "Start"}, ErrRefused},
		{"--no-new-option create " + anID, command{}, ErrCommand},
		{"--debug=true create", command{name: "create"}, nil},
		{"--rootless=false -v create", command{name: "create"}, nil},
		{"--criu", command{}, ErrCommand},
		{"-- start " + anID, command{}, ErrCommand},
		{"- start " + anID, command{}, ErrCommand},
	} {
		got, err := parse(append(slices.Clone(global), strings.Fields(c.words)...))
		c.want.log = "/l/log.json"
		if before := len(got.global); got.name != "" && (before < len(global) || !slices.Equal(got.global[:len(global)], global)) {
			t.Errorf("%s: before the command %q", c.words, got.global)
		}
		got.global = nil
		if !reflect.DeepEqual(got, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.words, got, err, c.want, c.err)
		}
	}
}

// A value of an option is no command, whatever it says.
func TestValueIsNoCommand(t *testing.T) {
	c, err := parse([]string{"--root", "create", "start", anID})
	if err != nil || c.name != start {
		t.Errorf("%+v, %v", c, err)
	}
}

// guard answers one question, and tells what was asked.
func guard(t *testing.T, answer func(c net.Conn)) (socket string, asked chan string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked = make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, QuestionSize)
		n, _ := c.Read(b)
		asked <- string(b[:n])
		answer(c)
	}()
	return socket, asked
}

func says(b []byte) func(net.Conn) { return func(c net.Conn) { c.Write(b) } }

func TestAsk(t *testing.T) {
	silent := make(chan struct{})
	defer close(silent)
	for name, c := range map[string]struct {
		answer func(net.Conn)
		want   error
		text   string
	}{
		"let go":        {says(Answer("")), nil, ""},
		"held":          {says(Answer("image-store: /x is not the image's")), ErrHeld, "image-store: /x is not the image's"},
		"a long reason": {says(Answer(strings.Repeat("x", 4*MaxAnswer))), ErrHeld, "xxx"},
		"in pieces":     {func(c net.Conn) { c.Write([]byte("g")); time.Sleep(10 * time.Millisecond); c.Write([]byte("o\n")) }, nil, ""},
		"nothing":       {func(net.Conn) {}, ErrGuard, "it says"},
		"half":          {says([]byte("go")), ErrGuard, "it says"},
		"more than go":  {says([]byte("go\ngo\n")), ErrGuard, "it says"},
		"much":          {says(bytes.Repeat([]byte("no x\n"), 1000)), ErrGuard, "more than"},
		"silence":       {func(net.Conn) { <-silent }, ErrGuard, "nothing within"},
	} {
		t.Run(name, func(t *testing.T) {
			socket, asked := guard(t, c.answer)
			err := ask(socket, anID, 300*time.Millisecond)
			if !errors.Is(err, c.want) || err != nil && (c.want == nil || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("%v; want %v", err, c.want)
			}
			id, perr := ParseQuestion([]byte(<-asked))
			if perr != nil || id != anID {
				t.Errorf("asked for %q: %v", id, perr)
			}
		})
	}
	if err := ask(filepath.Join(t.TempDir(), "nobody"), anID, time.Second); !errors.Is(err, ErrGuard) {
		t.Errorf("nobody answers: %v", err)
	}
}

// played is a runc that says how it was called, and has a process of a container that waits to
// execute its program.
const played = `#!/bin/sh
for w; do last2=$last; last=$w; done
case "$3 $last2" in
"state "*) echo "{\"status\":\"$(cat "$(dirname "$0")/status")\",\"pid\":$(cat "$(dirname "$0")/pid")}";;
"kill $ID") kill -9 "$(cat "$(dirname "$0")/pid")";;
*) echo "runc $*";;
esac
`

// process is one of a container.
type process struct{ *exec.Cmd }

func wait(t *testing.T, bin, status string) process {
	t.Helper()
	w := process{exec.Command("sleep", "600")}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Process.Kill(); w.Wait() })
	state(t, bin, status, w.Process.Pid)
	return w
}

func state(t *testing.T, bin, status string, pid int) {
	t.Helper()
	if err := errors.Join(os.WriteFile(filepath.Join(bin, "pid"), fmt.Append(nil, pid), 0o600), os.WriteFile(filepath.Join(bin, "status"), []byte(status), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// there tells whether it goes on: what has ended is a zombie until somebody waits.
func (w process) there() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.Process.Pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// TestProgram runs it as the engine does.
func TestProgram(t *testing.T) {
	bin := t.TempDir()
	runc := filepath.Join(bin, "runc")
	if err := os.WriteFile(runc, []byte(strings.ReplaceAll(played, "$ID", anID)), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(socket string, words ...string) (out, told string, err error) {
		file := filepath.Join(t.TempDir(), "log.json")
		cmd := exec.Command(os.Args[0], append([]string{"--log", file}, words...)...)
		cmd.Env = append(os.Environ(), asProgram+"=1", SocketEnv+"="+socket, "PATH="+bin+":"+os.Getenv("PATH"))
		b, err := cmd.CombinedOutput()
		if text, rerr := os.ReadFile(file); rerr == nil {
			var line map[string]string
			if err := json.Unmarshal(text, &line); err != nil || line["level"] != "error" {
				t.Errorf("%q: %v", text, err)
			}
			told = line["msg"]
		}
		return strings.ReplaceAll(string(b), file, "LOG"), told, err
	}
	nobody := filepath.Join(bin, "nobody")
	if out, _, err := run(nobody, "create", anID); err != nil || out != "runc --log LOG create "+anID+"\n" {
		t.Errorf("create: %q, %v", out, err)
	}
	if out, told, err := run(nobody, "exec", anID, "sh"); err == nil || strings.Contains(out, "runc --log") || !strings.Contains(told, ErrRefused.Error()) {
		t.Errorf("exec: %q, %q, %v", out, told, err)
	}
	w := wait(t, bin, "created")
	socket, _ := guard(t, says(Answer("")))
	if out, _, err := run(socket, "start", anID); err != nil || out != "runc --log LOG start "+anID+"\n" || !w.there() {
		t.Errorf("start, let go: %q, %v, its process there: %t", out, err, w.there())
	}
	socket, _ = guard(t, says(Answer("revoked: no")))
	for where, want := range map[string]string{nobody: ErrGuard.Error(), socket: `"revoked: no"`} {
		w := wait(t, bin, "created")
		out, told, err := run(where, "start", anID)
		if err == nil || strings.Contains(out, "runc --log") || !strings.Contains(told, want) || strings.Contains(told, ErrRunc.Error()) {
			t.Errorf("start, held: %q, %q, %v; want %s", out, told, err, want)
		}
		if w.there() {
			t.Errorf("%s: the process of the container is there", want)
		}
	}
	// A process that has ended before is no error; nor is a state without one, but it is told.
	if out, told, err := run(nobody, "start", anID); err == nil || strings.Contains(told, ErrRunc.Error()) {
		t.Errorf("start of what has ended: %q, %q, %v", out, told, err)
	}
	w = wait(t, bin, "running")
	if _, told, err := run(nobody, "start", anID); err == nil || strings.Contains(told, ErrRunc.Error()) || !w.there() {
		t.Errorf("start of what runs: %q, %v, its process there: %t", told, err, w.there())
	}
	state(t, bin, "created", 0)
	if _, told, err := run(nobody, "start", anID); err == nil || !strings.Contains(told, ErrGuard.Error()) || !strings.Contains(told, ErrRunc.Error()) {
		t.Errorf("start without a process: %q, %v", told, err)
	}
	if err := os.Remove(runc); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("runc"); err == nil {
		t.Setenv("PATH", "/nonexistent")
	}
	if out, told, err := run(nobody, "create", anID); err == nil || !strings.Contains(told, ErrRunc.Error()) {
		t.Errorf("without runc: %q, %q, %v", out, told, err)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"ociVersion":"1.0.2","id":"x","pid":17,"status":"created"}`))
	f.Add([]byte(`{"pid":-1,"status":"created"}`))
	f.Add([]byte(`{"pid":17,"status":"running"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Numbers of kill(2) that mean more than one process are none.
		if pid, err := waiting(b); pid < 0 || err != nil && pid != 0 {
			t.Errorf("%q: %d, %v", b, pid, err)
		}
	})
}

func FuzzCommand(f *testing.F) {
	f.Add("--root\x00/r\x00start\x00" + anID)
	f.Add("--log=/x\x00exec\x00a")
	f.Add("--rootless\x00start\x00start\x00" + anID)
	f.Fuzz(func(t *testing.T, line string) {
		c, err := parse(strings.Split(line, "\x00"))
		if err == nil && (c.name == start) != (c.id != "") {
			t.Errorf("%q: %+v", line, c)
		}
		if err == nil && c.name != start && !passes[c.name] {
			t.Errorf("%q passes as %+v", line, c)
		}
	})
}

func FuzzQuestion(f *testing.F) {
	f.Add([]byte(anID + "\n"))
	f.Add([]byte(anID))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := ParseQuestion(b); err == nil && string(b) != id+"\n" || err == nil && !isID(id) {
			t.Errorf("%q: %q", b, id)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("go\n"))
	f.Add([]byte("no revoked: x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := parseAnswer(b); (err == nil) != (string(b) == "go\n") {
			t.Errorf("%q: %v", b, err)
		}
		if a := Answer(string(b)); len(a) >= MaxAnswer || len(b) > 0 && !errors.Is(parseAnswer(a), ErrHeld) {
			t.Errorf("%q is answered by %q", b, fmt.Sprint(a))
		}
	})
}
