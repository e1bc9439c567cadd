package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setup is one run.
type setup struct {
	PCs     int
	Mean    time.Duration
	For     time.Duration
	Chips   bool          // each PC has one
	Think   time.Duration // of a chip for an answer
	Log     string        // file: what their firmware has measured; "": a short example
	Profile string        // path before the names of profiles; "": none
}

// measured is what came of it.
type measured struct {
	setup
	took     time.Duration
	judged   int
	findings int // that are not for information only: an honest PC has none
	cpu      time.Duration
	theirs   time.Duration // CPU of the PCs, with what pxed and gatewayd say of them
	rss      int64         // bytes, at the end
	switches int64         // of attestd's threads
	lates    []float64     // seconds, sorted
	load     string        // of the machine, at the end, over a minute
}

// late is the q-quantile of how late challenges were asked, in seconds.
func (m *measured) late(q float64) float64 {
	if len(m.lates) == 0 {
		return 0
	}
	return m.lates[min(int(q*float64(len(m.lates))), len(m.lates)-1)]
}

// timerSlack is TimerSlackNSec of attestd's unit.
const timerSlack = time.Millisecond

// trustTime bounds the time until every PC is trusted.
const trustTime = 3 * time.Minute

// measure runs the PCs and attestd and counts while all are trusted.
func measure(ctx context.Context, p *programs, state string, s setup) (*measured, error) {
	dir, err := os.MkdirTemp(state, "rack") // short: the path of a unix socket has 107 bytes
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pcs := exec.CommandContext(ctx, p.pcs, "-test.run=^TestRackForBench$", "-test.timeout=0")
	pcs.Env = append(os.Environ(), "PORTCULLIS_RACK_DIR="+dir, "PORTCULLIS_RACK_PCS="+strconv.Itoa(s.PCs), "PORTCULLIS_RACK_MEAN="+s.Mean.String())
	if s.Chips {
		pcs.Env = append(pcs.Env, "PORTCULLIS_RACK_CHIPS=1", "PORTCULLIS_RACK_LOG="+s.Log, "PORTCULLIS_RACK_THINK="+s.Think.String())
	}
	if s.Profile != "" {
		os.Remove(s.Profile + profileEnd)
		pcs.Args = append(pcs.Args, "-test.cpuprofile="+s.Profile+"-pcs.cpu")
	}
	pcs.Stdout, pcs.Stderr = io.Discard, os.Stderr
	hold, err := pcs.StdinPipe()
	if err != nil {
		return nil, err
	}
	gone, err := start(pcs)
	if err != nil {
		return nil, err
	}
	defer func() { hold.Close(); <-gone }()
	config := filepath.Join(dir, "portcullis.yaml")
	if err := await(ctx, config, gone); err != nil {
		return nil, err
	}
	reader, writer := io.Pipe()
	attestd := exec.CommandContext(ctx, p.attestd, "--config", config)
	attestd.Stdout, attestd.Stderr = writer, os.Stderr
	attestd.Env = append(os.Environ(), profileEnv+"="+s.Profile)
	ended, err := startSlack(attestd)
	if err != nil {
		return nil, err
	}
	defer func() {
		go io.Copy(io.Discard, reader) // attestd must not wait for a reader
		attestd.Process.Signal(syscall.SIGTERM)
		<-ended
	}()
	go func() { <-ended; writer.CloseWithError(errors.New("attestd has ended")) }()
	return count(reader, attestd.Process.Pid, pcs.Process.Pid, s)
}

// start starts c; the channel is closed when it has ended.
func start(c *exec.Cmd) (chan struct{}, error) {
	if err := c.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	return ended, nil
}

// startSlack starts c as attestd's unit does: the kernel may let its threads sleep
// timerSlack longer than they want, which spares waking them one by one.
func startSlack(c *exec.Cmd) (chan struct{}, error) {
	type started struct {
		ended chan struct{}
		err   error
	}
	done := make(chan started)
	go func() {
		runtime.LockOSThread() // a program inherits from the thread that starts it; this one ends with it
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0); err != nil {
			done <- started{nil, err}
			return
		}
		ended, err := start(c)
		done <- started{ended, err}
	}()
	s := <-done
	return s.ended, s.err
}

// await waits for a file.
func await(ctx context.Context, path string, gone <-chan struct{}) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-gone:
			return errors.New("the PCs have ended")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// count reads attestd's events. The clock starts when the last PC is trusted.
func count(events io.Reader, pid, pcs int, s setup) (*measured, error) {
	m := &measured{setup: s}
	trusted := make(map[string]bool)
	var began, end time.Time
	var before, theirs time.Duration
	limit := time.Now().Add(trustTime)
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Event, PC, State, Tier, Class, Reason, Detail string
			Late                                          float64 `json:"late_seconds"`
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			return nil, fmt.Errorf("attestd says %.100q", lines.Text())
		}
		counting := !began.IsZero()
		switch e.Event {
		case "verdict":
			trusted[e.PC] = e.State == "trusted" && (!s.Chips || e.Tier == "T1") // whose chip is enrolled
		case "finding":
			if e.Class != "info" {
				if m.findings++; m.findings <= 3 {
					fmt.Fprintf(os.Stderr, "%s: %s %s\n", e.PC, e.Reason, e.Detail)
				}
			}
		case "challenge":
			if counting {
				m.lates = append(m.lates, e.Late)
			}
		case "evidence":
			if counting {
				m.judged++
			}
		}
		now := time.Now()
		switch {
		case !counting && now.After(limit):
			return nil, fmt.Errorf("not every PC is trusted after %v", trustTime)
		case !counting && e.Event == "verdict" && all(trusted, s.PCs):
			began, end = now, now.Add(s.For)
			var err error
			if before, theirs, err = cpuTimes(pid, pcs); err != nil {
				return nil, err
			}
			if m.switches, err = switches(pid); err != nil {
				return nil, err
			}
			if err := s.profile(pid); err != nil {
				return nil, err
			}
		case counting && now.After(end):
			after, ended, err := cpuTimes(pid, pcs)
			if err != nil {
				return nil, err
			}
			changed, err := switches(pid)
			if err != nil {
				return nil, err
			}
			m.switches = changed - m.switches
			m.cpu, m.theirs, m.took = after-before, ended-theirs, now.Sub(began)
			slices.Sort(m.lates)
			if m.load, err = load(); err != nil {
				return nil, err
			}
			if m.rss, err = resident(pid); err != nil {
				return nil, err
			}
			err = s.profile(pid)
			for limit := time.Now().Add(30 * time.Second); s.Profile != "" && time.Now().Before(limit); time.Sleep(100 * time.Millisecond) {
				if _, err := os.Stat(s.Profile + profileEnd); err == nil {
					break
				}
			}
			return m, err
		}
	}
	return nil, lines.Err()
}

func all(trusted map[string]bool, n int) bool {
	for _, t := range trusted {
		if !t {
			return false
		}
	}
	return len(trusted) == n
}

// profile tells attestd to begin or to end its profile.
func (s *setup) profile(pid int) error {
	if s.Profile == "" {
		return nil
	}
	return syscall.Kill(pid, syscall.SIGUSR1)
}

func cpuTimes(a, b int) (x, y time.Duration, err error) {
	x, err = cpuTime(a)
	if err == nil {
		y, err = cpuTime(b)
	}
	return x, y, err
}

// cpuTime is what a process has used so far, user and system (proc(5): fields 14 and
// 15 of stat, in hundredths of a second on every Linux that Go runs on).
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("stat has too few fields")
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

// switches is how often the kernel has taken a processor from a thread of a process so
// far. A thread that ends takes its count with it; Go keeps its threads.
func switches(pid int) (n int64, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(b)) {
			name, rest, _ := strings.Cut(line, ":")
			if name != "voluntary_ctxt_switches" && name != "nonvoluntary_ctxt_switches" {
				continue
			}
			more, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil {
				return 0, err
			}
			n += more
		}
	}
	return n, nil
}

// resident is a process's memory, in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("status has no VmRSS")
}

// load is how many processes have waited for a processor over the last minute.
func load() (string, error) {
	b, err := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first, err
}
