package guard

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
)

func TestParseShim(t *testing.T) {
	line := func(words ...string) string { return strings.Join(words, "\x00") + "\x00" }
	for text, want := range map[string]shim{
		line("/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", "abc", "-address", "/run/containerd/containerd.sock"): {0, "moby", "abc", "/run/containerd/containerd.sock"},
		line("containerd-shim-runc-v2", "-debug", "--id", "abc", "--address", "/x", "--namespace", "evil"):                          {0, "evil", "abc", "/x"},
		line("sh", "-c", "containerd-shim-runc-v2 -id x -address y"):                                                                {},
		line("containerd-shim-runc-v2", "-namespace", "moby"):                                                                       {},
		line("containerd-shim-runc-v2", "-id"):                                                                                      {},
		"":                                                                                                                          {},
	} {
		s, ok := parseShim(text)
		if ok != (want != shim{}) || ok && s != want {
			t.Errorf("%q: %+v %t", text, s, ok)
		}
	}
}

// Anybody writes what he likes on a command line.
func FuzzParseShim(f *testing.F) {
	f.Add("/usr/bin/containerd-shim-runc-v2\x00-namespace\x00moby\x00-id\x00abc\x00-address\x00/run/containerd/containerd.sock\x00")
	f.Add("containerd-shim\x00-id\x00-id\x00-address")
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := parseShim(line); ok && (s.id == "" || s.where == "" || strings.Contains(s.id+s.where+s.space, "\x00")) {
			t.Errorf("%q: %+v", line, s)
		}
	})
}

// shimEnv makes this test's program a shim: "empty", or "full" with a process beside it, which is a shim of "nothing".
const shimEnv = "PORTCULLIS_TEST_SHIM"

func playShim(kind string) {
	runtime.LockOSThread() // the child goes with the thread that made it
	if kind == "full" {
		child := exec.Command("/proc/self/exe")
		child.Env = []string{shimEnv + "=nothing"}
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := child.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go child.Wait() // as a shim does
	}
	time.Sleep(time.Hour)
}

// standsBeside begins a shim of a container in the engine's namespace of a containerd.
func standsBeside(t *testing.T, kind, id, containerd string, as *syscall.SysProcAttr) (s shim, ended <-chan struct{}) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // which another user may start, too
	cmd.Args = []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", id, "-address", containerd}
	cmd.Env = []string{shimEnv + "=" + kind}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = as
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	return shim{pid: cmd.Process.Pid, space: "moby", id: id, where: containerd}, done
}

// set is a clock that stands until it is moved.
type set struct{ now time.Time }

func (s *set) Now() time.Time                       { return s.now }
func (s *set) After(time.Duration) <-chan time.Time { return nil }

// TestInvariant07_ShimWithoutContainer: what runs in containerd and is nobody's is ended
// when its shim has been there for a moment; a shim that goes slowly after a container that
// the guard removed is no finding, while no process is left beside it.
func TestInvariant07_ShimWithoutContainer(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	now := &set{time.Now()}
	log := &eventtest.Buffer{}
	g := before(t, &listed{}, func(o *Options) {
		o.Containerd, o.Clock, o.Events = containerd, now, event.NewJSON(log, "guard", time.Now)
	})
	reported := func() (out []string) {
		for _, id := range []string{"going", "strange"} {
			if strings.Contains(log.String(), `"container":"`+id+`"`) {
				out = append(out, id)
			}
		}
		return out
	}
	going, gone := standsBeside(t, "empty", "going", containerd, nil)
	strange, ended := standsBeside(t, "full", "strange", containerd, nil)
	waitFor(t, "both shims", 10*time.Second, func() bool { return going.empty() && !strange.empty() })
	for _, step := range []struct {
		after time.Duration
		want  []string
	}{{0, nil}, {lingers - 1, nil}, {1, []string{"strange"}}, {emptyLingers - lingers - 1, []string{"strange"}}, {1, []string{"going", "strange"}}} {
		now.now = now.now.Add(step.after)
		g.tasks()
		if got := reported(); !slices.Equal(got, step.want) {
			t.Errorf("%s later: %v, not %v", step.after, got, step.want)
		}
	}
	<-ended
	<-gone
	if !g.opt.Approvals.(*approvals).has(ReasonContainer) {
		t.Error("not in the log")
	}
}

// TestAttack_BorrowedName: a container that does not run has no shim. Who has containerd run something under its ID
// has it ended as under any other; beside one that runs nothing is wrong.
func TestAttack_BorrowedName(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	now := &set{time.Now()}
	log := &eventtest.Buffer{}
	g := before(t, &listed{}, func(o *Options) {
		o.Containerd, o.Clock, o.Events = containerd, now, event.NewJSON(log, "guard", time.Now)
	})
	over := map[string]<-chan struct{}{}
	for _, id := range []string{"runs", "ended"} {
		if err := g.state.change(func(f *stateFile) { f.Containers[id] = madeByGuard{Permitted: true} }); err != nil {
			t.Fatal(err)
		}
		var s shim
		s, over[id] = standsBeside(t, "full", id, containerd, nil)
		waitFor(t, "the shim of "+id, 10*time.Second, func() bool { return !s.empty() })
	}
	g.still.Store("ended", true)
	g.tasks()
	now.now = now.now.Add(lingers)
	g.tasks()
	waitFor(t, "the end of the borrowed one", 10*time.Second, func() bool {
		select {
		case <-over["ended"]:
			return true
		default:
			return false
		}
	})
	if text := log.String(); strings.Contains(text, `"container":"runs"`) || !strings.Contains(text, `"container":"ended"`) {
		t.Error(text)
	}
	select {
	case <-over["runs"]:
		t.Error("the shim of a container that runs was ended")
	default:
	}
}

// TestAttack_ForgedShim: anybody can write a shim's command line. Of who is not root, or is root in a container, the
// guard does not even read it: nothing is killed or reported.
func TestAttack_ForgedShim(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	shown := func(s shim) {
		waitFor(t, "the command line of "+s.id, 10*time.Second, func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.pid))
			found, ok := parseShim(string(b))
			return err == nil && ok && found.id == s.id
		})
	}
	user, _ := standsBeside(t, "empty", "user", containerd, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}})
	shown(user)
	begun := make(chan shim, 1)
	go func() {
		defer close(begun)
		runtime.LockOSThread() // and never unlocked: what the thread gives up is gone
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			t.Error(err)
			return
		}
		s, _ := standsBeside(t, "empty", "container", containerd, nil)
		begun <- s
	}()
	contained, ok := <-begun
	if !ok {
		t.FailNow()
	}
	shown(contained)
	real, _ := standsBeside(t, "empty", "real", containerd, nil)
	shown(real)
	var found []string
	all, err := shims()
	for _, s := range all {
		if s.where == containerd {
			found = append(found, s.id)
		}
	}
	if err != nil || !slices.Equal(found, []string{"real"}) {
		t.Errorf("%v %v", found, err)
	}
}

func TestMountingRoot(t *testing.T) {
	const root, mounts = "Uid:\t0\t0\t0\t0\n", "CapEff:\t0000000000200000\n"
	for status, want := range map[string]bool{
		"Name:\tx\n" + root + "Gid:\t1\t1\t1\t1\n" + mounts: true,
		root + "CapEff:\t000001ffffffffff\n":                true,
		root:                                                false,
		mounts:                                              false,
		"":                                                  false,
		"Uid:\t1000\t0\t0\t0\n" + mounts:                    false,
		"Uid:\t0\t0\t0\t1000\n" + mounts:                    false,
		"Uid:\t0\n" + mounts:                                false,
		root + "CapEff:\t000001ffffdfffff\n":                false,
		root + "CapEff:\tnone\n":                            false,
		root + "CapEff:\n":                                  false,
		root + "CapPrm:\t000001ffffffffff\n":                false,
		"Name:\tCapEff: 000001ffffffffff\n" + root:          false,
		"Name:\tUid: 0 0 0 0\n" + mounts:                    false,
	} {
		if mountingRoot(status) != want {
			t.Errorf("%q: %t", status, !want)
		}
	}
}
