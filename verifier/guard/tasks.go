package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/internal/event"
	"portcullis/verifier/record"
)

// The engine runs its containers through containerd, whose socket is root's. Who
// speaks to that directly gets a container of which the engine knows nothing. But
// each one has a shim, a process that says on its command line whose it is.

// anyEngineSpace is the namespace of containerd that Docker's engine uses, with the
// user and group that root is outside where the engine has user namespaces.
var anyEngineSpace = regexp.MustCompile(`^moby([.-][0-9]{1,10}\.[0-9]{1,10})?$`)

// engineSpace tells whether a namespace of containerd is that of the engine that was met;
// before that, of any engine. Another one may have a container of an ID that the guard
// knows, beside the real one.
func (g *Guard) engineSpace(space string) bool {
	g.mu.Lock()
	met := g.info
	g.mu.Unlock()
	switch {
	case met.Version == "":
		return anyEngineSpace.MatchString(space)
	case !met.Userns || sharesSpace(met.Version):
		return space == "moby"
	}
	users := fmt.Sprintf("%d.%d", met.FirstUID, met.FirstGID)
	return space == "moby-"+users || space == "moby."+users
}

// sharesSpace tells whether an engine with user namespaces uses the namespace of one without
// them, as all did before Docker 26 (moby/moby pull request 46786).
func sharesSpace(version string) bool {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n < 26
}

// shim is a process that stands beside a container of containerd.
type shim struct {
	pid              int
	space, id, where string
}

// lingers is how long a shim may be there after its container has gone.
const lingers = 2 * time.Second

// emptyLingers is how long one may beside which no process is left: it runs nothing, and
// where the processor is slow its end takes long.
const emptyLingers = time.Minute

// tasks ends what runs in the engine's containerd without the engine.
func (g *Guard) tasks() {
	if g.opt.Containerd == "" {
		return
	}
	all, err := shims()
	if err != nil {
		g.opt.Events.Emit("engine.failed", event.Fields{"reason": ReasonEngine, "detail": err.Error()})
		return
	}
	unknown, again := map[int]time.Time{}, false
	defer func() {
		g.shims = unknown
		// One more look is enough, however many asked for it.
		if again && g.again.CompareAndSwap(false, true) {
			go func() {
				<-g.opt.Clock.After(lingers)
				g.again.Store(false)
				signal(g.wake)
			}()
		}
	}()
	for _, s := range all {
		if s.where != g.opt.Containerd {
			continue
		}
		if g.engineSpace(s.space) {
			// A container of the guard is in the state before it starts, and its shim ends a moment after it. One
			// that does not run has none: somebody has borrowed its name.
			_, still := g.still.Load(s.id)
			if _, ok := g.state.container(s.id); ok && !still {
				continue
			}
			now := g.opt.Clock.Now()
			first, seen := g.shims[s.pid]
			if !seen {
				first = now
			}
			unknown[s.pid] = first
			if there := now.Sub(first); there < lingers || there < emptyLingers && s.empty() {
				again = true
				continue
			}
		}
		detail := fmt.Sprintf("containerd runs %s in its namespace %s, without the engine", printable(s.id, 80), printable(s.space, 40))
		err := errors.Join(s.end(), g.Refuse(record.Refusal{Action: ActionRun, Reason: ReasonContainer, Detail: detail, Caller: engineItself}))
		f := event.Fields{"container": s.id, "reason": ReasonContainer, "detail": detail}
		if err != nil {
			f["failed"] = err.Error()
		}
		g.opt.Events.Emit("container.ended", f)
	}
}

// killed kills the processes of one of the engine's containers, without the engine, and
// tells whether there were any. Its shim stays: from it the engine hears of the end.
func (g *Guard) killed(id string) bool {
	if g.opt.Containerd == "" {
		return false
	}
	all, err := shims()
	if err != nil {
		return false
	}
	some := false
	for _, s := range all {
		if s.id == id && s.where == g.opt.Containerd && g.engineSpace(s.space) {
			// One that cannot be killed is left to the engine.
			n, err := s.endChildren()
			some = some || n > 0 && err == nil
		}
	}
	return some
}

// shims lists the shims of all containerds of this machine.
func shims() ([]shim, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var out []shim
	for _, f := range files {
		if !mayBeShim(filepath.Dir(f)) {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		if s, ok := parseShim(string(b)); ok {
			s.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(f))) // digits, by the pattern
			out = append(out, s)
		}
	}
	return out, nil
}

// mayBeShim tells whether a process may be a shim by what it cannot give itself: containerd's are root's, and
// may mount. Everybody else, a container's root too, can write a shim's command line: to have a container
// reported that is none, or, with a command line that lies in a file system of his own which does not answer,
// to hold up whoever reads it, and so the end of a container that was revoked. What is read here takes
// nothing of the process's memory.
func mayBeShim(proc string) bool {
	b, err := os.ReadFile(filepath.Join(proc, "status"))
	return err == nil && mountingRoot(string(b))
}

// mountingRoot reads proc_pid_status(5): all four users are root, with CAP_SYS_ADMIN in effect.
func mountingRoot(status string) bool {
	root, mounts := false, false
	for line := range strings.Lines(status) {
		words := strings.Fields(line)
		switch {
		case len(words) == 5 && words[0] == "Uid:":
			root = slices.Equal(words[1:], []string{"0", "0", "0", "0"})
		case len(words) == 2 && words[0] == "CapEff:":
			all, err := strconv.ParseUint(words[1], 16, 64)
			mounts = err == nil && all&(1<<unix.CAP_SYS_ADMIN) != 0
		}
	}
	return root && mounts
}

// parseShim reads the command line of a shim: words that end with NUL.
func parseShim(line string) (s shim, ok bool) {
	words := strings.Split(strings.TrimSuffix(line, "\x00"), "\x00")
	if !strings.HasPrefix(filepath.Base(words[0]), "containerd-shim") {
		return shim{}, false
	}
	into := map[string]*string{"namespace": &s.space, "id": &s.id, "address": &s.where}
	for i := 1; i+1 < len(words); i++ {
		if to := into[strings.TrimLeft(words[i], "-")]; to != nil && strings.HasPrefix(words[i], "-") {
			*to = words[i+1]
			i++
		}
	}
	return s, s.id != "" && s.where != ""
}

// end kills the container's first process, with which the kernel ends the others of
// its PID namespace, and the shim.
func (s shim) end() error {
	own, err := unix.PidfdOpen(s.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(own)
	// The number may be another process's by now: what is killed is looked at again, through a handle.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.pid))
	if again, ok := parseShim(string(b)); err != nil || !ok || again.id != s.id {
		return nil
	}
	_, err = s.endChildren()
	if kerr := unix.PidfdSendSignal(own, unix.SIGKILL, nil, 0); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
		err = errors.Join(err, kerr)
	}
	return err
}

// endChildren kills the processes beside a shim, and tells how many there were.
func (s shim) endChildren() (killed int, err error) {
	pids, _, err := s.children()
	for _, pid := range pids {
		child, perr := unix.PidfdOpen(pid, 0)
		if perr != nil {
			if !errors.Is(perr, unix.ESRCH) {
				err = errors.Join(err, perr)
			}
			continue
		}
		// The number may have become another process's before the handle was opened.
		if parentOf(pid) == s.pid {
			kerr := unix.PidfdSendSignal(child, unix.SIGKILL, nil, 0)
			switch {
			case kerr == nil:
				killed++
			case !errors.Is(kerr, unix.ESRCH):
				err = errors.Join(err, kerr)
			}
		}
		unix.Close(child)
	}
	return killed, err
}

// empty tells whether no process of a container stands beside a shim: the first one is its
// child, and those that lose their parent become so.
func (s shim) empty() bool {
	pids, read, err := s.children()
	if read == 0 { // it has ended, or this kernel has no such lists: what cannot be seen is not empty
		_, err := os.Stat(fmt.Sprintf("/proc/%d", s.pid))
		return errors.Is(err, os.ErrNotExist)
	}
	return err == nil && len(pids) == 0
}

// children are the processes whose parent a shim is, as the threads have them whose lists
// could be read.
func (s shim) children() (pids []int, read int, err error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/children", s.pid))
	if err != nil {
		return nil, 0, err
	}
	for _, f := range lists {
		b, rerr := os.ReadFile(f)
		if errors.Is(rerr, os.ErrNotExist) || errors.Is(rerr, unix.ESRCH) {
			continue // the thread has ended
		}
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		read++
		for _, word := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, read, err
}

// parentOf reads the fourth field of proc_pid_stat(5); 0 where there is none.
func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	if words := strings.Fields(rest); len(words) > 1 {
		parent, _ := strconv.Atoi(words[1])
		return parent
	}
	return 0
}
