package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/lab/wire"
)

// DefaultState is where labs keep their state, one directory a lab.
const DefaultState = "/run/portcullis-lab"

// nameForm bounds a lab's name: it becomes part of namespace names and of unix
// socket paths, which end at 107 bytes.
var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,23}$`)

// Reasons why a name cannot be used.
var (
	ErrName    = errors.New("bad lab name: a letter, then up to 23 of a-z 0-9 and -")
	ErrRunning = errors.New("a lab of this name is running")
	ErrNoLab   = errors.New("no lab of this name")
)

// process is a child that the lab has started. Start is its start time in clock
// ticks since boot (/proc/PID/stat, field 22): a recycled pid has another.
type process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// record is lab.json: what must be known to remove a lab without its owner.
type record struct {
	Name      string    `json:"name"`
	Owner     process   `json:"owner"`
	Firmware  string    `json:"firmware"`
	Pi        string    `json:"pi"`
	Remove    []string  `json:"remove,omitempty"` // directories outside the lab's own
	Created   time.Time `json:"created"`
	Kept      bool      `json:"kept"` // the owner has left on purpose
	Processes []process `json:"processes"`
}

// place is the state directory of one lab.
type place struct{ base, name string }

func newPlace(base, name string) (place, error) {
	if base == "" {
		base = DefaultState
	}
	if !nameForm.MatchString(name) {
		return place{}, fmt.Errorf("%w: %q", ErrName, name)
	}
	if len(filepath.Join(base, name, "run/gatewayd/gatewayd.sock")) > 107 {
		return place{}, fmt.Errorf("lab: state directory %s is too long for unix sockets", base)
	}
	return place{base, name}, nil
}

func (p place) dir() string            { return filepath.Join(p.base, p.name) }
func (p place) file(rel string) string { return filepath.Join(p.base, p.name, rel) }
func (p place) run() string            { return p.file("run") }
func (p place) log(name string) string { return p.file("log/" + name + ".log") }
func (p place) world() string          { return p.file("world.sock") }

// lock takes the lab's name until unlock.
func (p place) lock() (*os.File, error) {
	if err := os.MkdirAll(p.base, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	for {
		f, err := os.OpenFile(p.lockPath(), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%w: %s", ErrRunning, p.name)
			}
			return nil, fmt.Errorf("lab: lock: %w", err)
		}
		// Whoever had it before may have removed the file between our open and our
		// lock: then the lock is on a file that nobody else will find.
		ours, err1 := f.Stat()
		there, err2 := os.Stat(p.lockPath())
		if err1 == nil && err2 == nil && os.SameFile(ours, there) {
			return f, nil
		}
		f.Close()
	}
}

func (p place) lockPath() string { return filepath.Join(p.base, p.name+".lock") }

// unlock gives the name free and leaves no file behind.
func (p place) unlock(f *os.File) {
	os.Remove(p.lockPath())
	f.Close()
}

func (p place) load() (record, error) {
	b, err := os.ReadFile(p.file("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("%w: %s", ErrNoLab, p.name)
	}
	if err != nil {
		return record{}, fmt.Errorf("lab: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, fmt.Errorf("lab: %s: %w", p.file("lab.json"), err)
	}
	return r, nil
}

// save replaces lab.json in one step.
func (p place) save(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := p.file("lab.json.new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return os.Rename(tmp, p.file("lab.json"))
}

// sweep ends and removes what a lab without an owner has left. The caller holds
// the lock.
func (p place) sweep() error {
	var errs []error
	if r, err := p.load(); err == nil {
		for _, c := range r.Processes {
			c.kill()
		}
		for _, d := range r.Remove {
			errs = append(errs, os.RemoveAll(d))
		}
	} else if !errors.Is(err, ErrNoLab) {
		errs = append(errs, err)
	}
	errs = append(errs, wire.Remove(p.name), os.RemoveAll(p.dir()))
	return errors.Join(errs...)
}

// names lists the labs that have a state directory.
func names(base string) []string {
	if base == "" {
		base = DefaultState
	}
	found, _ := filepath.Glob(filepath.Join(base, "*", "lab.json"))
	var out []string
	for _, f := range found {
		out = append(out, filepath.Base(filepath.Dir(f)))
	}
	sort.Strings(out)
	return out
}

func newProcess(name string, pid int) process {
	start, _ := startTime(pid)
	return process{Name: name, PID: pid, Start: start}
}

// alive tells whether it is still the same process, and no zombie.
func (c process) alive() bool {
	start, state := startTime(c.PID)
	return start != 0 && start == c.Start && state != 'Z'
}

// kill ends the process group of a process that is still the one recorded.
func (c process) kill() {
	if !c.alive() {
		return
	}
	syscall.Kill(-c.PID, syscall.SIGKILL)
	syscall.Kill(c.PID, syscall.SIGKILL)
	for range 200 {
		if !c.alive() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// startTime reads /proc/PID/stat (proc_pid_stat(5)); 0 when there is no such process.
func startTime(pid int) (start uint64, state byte) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0
	}
	// The second field is the command in parentheses and may itself contain both.
	_, rest, ok := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, 0
	}
	start, _ = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0][0]
}
