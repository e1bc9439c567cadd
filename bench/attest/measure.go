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
	"slices"
	"strconv"
	"strings"
	"time"
)

// setup is one run.
type setup struct {
	PCs  int
	Mean time.Duration
	For  time.Duration
	Ops  string

	Profile string // file
}

// measured is what came of it.
type measured struct {
	setup
	took     time.Duration
	judged   int
	findings int // that are not for information only: an honest PC has none
	cpu      time.Duration
	rss      int64     // bytes, at the end
	lates    []float64 // seconds, sorted
}

// late is the q-quantile of how late challenges were asked, in seconds.
func (m *measured) late(q float64) float64 {
	if len(m.lates) == 0 {
		return 0
	}
	return m.lates[min(int(q*float64(len(m.lates))), len(m.lates)-1)]
}

// trustTime bounds the time until every PC is trusted.
const trustTime = 3 * time.Minute

// build makes the program that is both ends.
func build(ctx context.Context) (program string, done func(), err error) {
	dir, err := os.MkdirTemp("", "bench-attest")
	if err != nil {
		return "", nil, err
	}
	done = func() { os.RemoveAll(dir) }
	program = filepath.Join(dir, "rack")
	c := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "portcullis/attestserver/expect")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		done()
		return "", nil, fmt.Errorf("build: %w\n%s", err, out)
	}
	return program, done, nil
}

// measure runs attestd and the PCs and counts while all are trusted.
func measure(ctx context.Context, program string, s setup) (*measured, error) {
	dir, err := os.MkdirTemp("", "rack") // short: the path of a unix socket has 107 bytes
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_, _, stopAgents, err := start(ctx, program, "agents", dir, s, io.Discard)
	if err != nil {
		return nil, err
	}
	defer stopAgents()
	reader, writer := io.Pipe()
	judge, ended, stopJudge, err := start(ctx, program, "judge", dir, s, writer)
	if err != nil {
		return nil, err
	}
	defer stopJudge()
	defer func() { go io.Copy(io.Discard, reader) }() // attestd must not wait for a reader
	go func() { <-ended; writer.CloseWithError(errors.New("attestd has ended")) }()
	return count(reader, judge, s)
}

// start runs one end. It ends when stop is called.
func start(ctx context.Context, program, role, dir string, s setup, out io.Writer) (pid int, ended chan struct{}, stop func(), err error) {
	c := exec.CommandContext(ctx, program, "-test.run=^TestRack$", "-test.timeout=0")
	if role == "judge" && s.Profile != "" {
		c.Args = append(c.Args, "-test.cpuprofile="+s.Profile, "-test.memprofile="+s.Profile+".mem")
	}
	c.Env = append(os.Environ(), "PORTCULLIS_RACK="+role, "PORTCULLIS_RACK_DIR="+dir, "PORTCULLIS_RACK_PCS="+strconv.Itoa(s.PCs),
		"PORTCULLIS_RACK_MEAN="+s.Mean.String(), "PORTCULLIS_RACK_OPS="+s.Ops)
	c.Stdout, c.Stderr = out, os.Stderr
	stdin, err := c.StdinPipe()
	if err != nil {
		return 0, nil, nil, err
	}
	if err := c.Start(); err != nil {
		return 0, nil, nil, err
	}
	ended = make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	return c.Process.Pid, ended, func() { stdin.Close(); <-ended }, nil
}

// count reads attestd's events. The clock starts when the last PC is trusted.
func count(events io.Reader, pid int, s setup) (*measured, error) {
	m := &measured{setup: s}
	trusted := make(map[string]bool)
	var began, end time.Time
	var before time.Duration
	limit := time.Now().Add(trustTime)
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Event, PC, State, Class, Reason, Detail string
			Late                                    float64 `json:"late_seconds"`
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // the test program's own words
		}
		counting := !began.IsZero()
		switch e.Event {
		case "verdict":
			trusted[e.PC] = e.State == "trusted"
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
			if before, err = cpuTime(pid); err != nil {
				return nil, err
			}
		case counting && now.After(end):
			after, err := cpuTime(pid)
			if err != nil {
				return nil, err
			}
			m.cpu, m.took = after-before, now.Sub(began)
			slices.Sort(m.lates)
			m.rss, err = resident(pid)
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
