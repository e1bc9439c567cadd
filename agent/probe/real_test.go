package probe

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// The tests here read the machine that they run on, as root.

// started copies a program to a directory and runs it there until the test ends.
func started(t *testing.T) (path string, pid int, content []byte) {
	t.Helper()
	content, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "evil program")
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-test.run=^TestHelperWaits$")
	cmd.Env = append(os.Environ(), "PROBE_TEST_WAIT=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	return path, cmd.Process.Pid, content
}

// TestHelperWaits is the program that started runs.
func TestHelperWaits(*testing.T) {
	if os.Getenv("PROBE_TEST_WAIT") == "" {
		return
	}
	_, _ = os.Stdout.WriteString("!")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

func TestProcs_NamesARunningProgram(t *testing.T) {
	path, pid, content := started(t)
	out, err := find(t, protocol.OpProcs).Run(context.Background(), protocol.OpKey{}, protocol.None)
	if err != nil {
		t.Fatal(err)
	}
	var d protocol.ProcsData
	if err := protocol.DecodeOp(out.Data, protocol.MaxData, &d); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(d.Files, func(f protocol.File) bool { return f.Path == path })
	if i < 0 {
		t.Fatalf("%s is not among %d files", path, len(d.Files))
	}
	if f := d.Files[i]; !slices.Equal(f.PIDs, []int{pid}) || f.Size != int64(len(content)) || f.FSType == "" || f.Deleted || len(f.Segments) == 0 {
		t.Errorf("%+v", f)
	}
	if !slices.ContainsFunc(d.Processes, func(p protocol.Process) bool { return p.PID == pid && p.Exe == path && p.PPID == os.Getpid() }) {
		t.Errorf("process %d is not listed", pid)
	}
	if len(d.Mounts) == 0 {
		t.Error("no mounts")
	}
}

// Two shells execute each other on and on: whenever they are looked at, the process is
// listed, as one of them or as restless.
func TestProcs_WhoExecutesOnAndOnIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []struct{ name, text string }{{"a", "exec /bin/bash " + dir + "/b"}, {"b", "exec /bin/dash " + dir + "/a"}} {
		if err := os.WriteFile(filepath.Join(dir, s.name), []byte(s.text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/dash", filepath.Join(dir, "a"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	h, pid := Host{}.withDefaults(), cmd.Process.Pid
	for range 300 {
		s := &scan{index: map[fileKey]*mappedFile{}}
		if err := s.add(t.Context(), h, pid); err != nil {
			t.Fatal(err)
		}
		if len(s.processes)+len(s.restless) != 1 || s.vanished != 0 {
			t.Fatalf("%d processes, restless %+v, %d vanished", len(s.processes), s.restless, s.vanished)
		}
	}
}

func TestPmem_ReadsWhatIsInTheFile(t *testing.T) {
	path, pid, content := started(t)
	var key protocol.OpKey
	params, err := json.Marshal(protocol.PmemParams{Seed: strings.Repeat("00", 32), Extra: 8})
	if err != nil {
		t.Fatal(err)
	}
	out, err := find(t, protocol.OpPmem).Run(context.Background(), key, params)
	if err != nil {
		t.Fatal(err)
	}
	var d protocol.PmemData
	if err := protocol.DecodeOp(out.Data, protocol.MaxData, &d); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range d.Pages {
		if p.Path != path {
			continue
		}
		n++
		page := make([]byte, protocol.PageSize)
		copy(page, content[p.Offset:])
		if p.PID != pid || p.MAC != key.MACs().PageMAC(path, p.Offset, page) {
			t.Errorf("page at %#x of process %d is not the file's", p.Offset, p.PID)
		}
	}
	if n == 0 {
		t.Errorf("no page of %s among %d", path, len(d.Pages))
	}
}

// One byte of a running program's code is written as a debugger does it.
func TestPmem_FindsOnePatchedByte(t *testing.T) {
	path, pid, _ := started(t)
	patches := func() (out []protocol.Patch) {
		t.Helper()
		answer, err := find(t, protocol.OpPmem).Run(context.Background(), protocol.OpKey{}, []byte(`{"seed":"`+strings.Repeat("00", 32)+`","extra":0}`))
		if err != nil {
			t.Fatal(err)
		}
		var d protocol.PmemData
		if err := protocol.DecodeOp(answer.Data, protocol.MaxData, &d); err != nil {
			t.Fatal(err)
		}
		for _, p := range d.Patches {
			if p.PID == pid {
				out = append(out, p)
			}
		}
		return out
	}
	if p := patches(); len(p) > 0 {
		t.Fatalf("an untouched program is patched: %+v", p)
	}
	maps, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
	if err != nil {
		t.Fatal(err)
	}
	code, err := executableMappings(string(maps))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(code, func(m mapping) bool { return m.path == path })
	mem, err := os.OpenFile(filepath.Join("/proc", strconv.Itoa(pid), "mem"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	// The last byte of the mapping's third page, put back as it was: the page is the process's own all the same.
	at := int64(code[i].start) + 3*protocol.PageSize - 1
	b := make([]byte, 1)
	if _, err := mem.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	p := patches()
	if len(p) != 1 || p[0].Path != path || p[0].Pages != 1 || p[0].Offset != code[i].offset+2*protocol.PageSize {
		t.Errorf("%+v", p)
	}
}

func TestProbes_EndWithTheirDeadline(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for op, params := range map[string]string{protocol.OpProcs: "{}", protocol.OpHw: "{}", protocol.OpModules: "{}",
		protocol.OpPmem: `{"seed":"` + strings.Repeat("00", 32) + `","extra":0}`} {
		if _, err := find(t, op).Run(ctx, protocol.OpKey{}, []byte(params)); err == nil {
			t.Errorf("%s ran on after the deadline", op)
		}
	}
}

func TestProbes_RefuseOtherParameters(t *testing.T) {
	for _, p := range All(Host{}) {
		for _, bad := range []string{"", "null", "[]", `{"x":1}`, `{}{}`, `{"blocks":[]}`, `{"seed":"00","extra":1}`} {
			if _, err := p.Run(context.Background(), protocol.OpKey{}, []byte(bad)); err == nil {
				t.Errorf("%s took %q", p.Name(), bad)
			}
		}
	}
}

func TestNet_ListsLoopback(t *testing.T) {
	links, err := netlinkLinks()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(links, func(l protocol.Link) bool { return l.Name == "lo" && l.Loopback && l.Kind == "" }) {
		t.Errorf("%+v", links)
	}
}

func find(t testing.TB, op string) protocol.Probe {
	t.Helper()
	for _, p := range All(Host{}) {
		if p.Name() == op {
			return p
		}
	}
	t.Fatalf("no probe %s", op)
	return nil
}

// The cost on the machine that runs it; under emulation it is about ten times that.
func BenchmarkProbes(b *testing.B) {
	for _, op := range []string{protocol.OpProcs, protocol.OpPmem, protocol.OpModules, protocol.OpNet, protocol.OpHw} {
		p, params := find(b, op), "{}"
		if op == protocol.OpPmem {
			params = `{"seed":"` + strings.Repeat("00", 32) + `","extra":32}`
		}
		b.Run(op, func(b *testing.B) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			for b.Loop() {
				if _, err := p.Run(ctx, protocol.OpKey{}, []byte(params)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A constant of the agent that is written to, with the value that it has, is told.
func TestPmem_OwnConstants(t *testing.T) {
	if own, err := (Host{Proc: "/proc"}).constants(); err != nil || len(own) > 0 {
		t.Fatalf("%+v, %v", own, err)
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	b, err := unix.Mmap(int(exe.Fd()), 8*protocol.PageSize, 4*protocol.PageSize, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	at := int64(uintptr(unsafe.Pointer(&b[2*protocol.PageSize])))
	if _, err := mem.WriteAt(b[2*protocol.PageSize:][:1], at); err != nil {
		t.Fatal(err)
	}
	own, err := (Host{Proc: "/proc"}).constants()
	if err != nil || len(own) != 1 || own[0].Pages != 1 || own[0].Offset != 10*protocol.PageSize || own[0].PID != os.Getpid() {
		t.Errorf("%+v, %v", own, err)
	}
}
