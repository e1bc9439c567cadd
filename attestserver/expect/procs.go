package expect

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
)

// Procs is the twin of probe.Procs.
type Procs struct {
	user
	tasks
}

// Name implements protocol.Expectation.
func (*Procs) Name() string { return protocol.OpProcs }

// Params implements protocol.Expectation.
func (*Procs) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// Judge implements protocol.Expectation.
func (e *Procs) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.ProcsData
	if !j.read(in, &d) {
		return j.list
	}
	names := map[int]string{}
	for _, p := range d.Processes {
		names[p.PID] = p.Comm
	}
	seen := judgedFiles{}
	reading := d.ReadingMS > 0 && d.ReadingMS < readingLimit.Milliseconds()
	noted := map[string]bool{}
	for i := range d.Files {
		f := &d.Files[i]
		switch {
		case e.ofTask(f) && !f.Writable:
			seen.add(f)
			if !noted[f.Container] {
				j.add(protocol.Info, ReasonTask, "container %.12s runs %s of the approved image %.12s", f.Container, f.Path, f.Image)
			}
			noted[f.Container] = true
			continue
		case f.Container != "" && f.Image == "" && reading:
			seen.add(f)
			j.add(protocol.Info, ReasonTaskUnread, "%s in container %.12s: the images of containers are still being read", f.Path, f.Container)
			continue
		}
		if err := e.file(j, f, names, seen); err != nil {
			j.unjudged(err)
			return j.list
		}
	}
	for _, a := range d.Anonymous {
		j.fatal(ReasonAnonymousCode, "process %d (%s): %d bytes at %#x %s", a.PID, names[a.PID], a.Length, a.Start, a.Label)
	}
	if err := e.processes(j, &d, seen); err != nil {
		j.unjudged(err)
		return j.list
	}
	if err := e.confinement(j, in.State, d.Processes); err != nil {
		j.unjudged(err)
		return j.list
	}
	if err := e.mounts(j, d.Mounts); err != nil {
		j.unjudged(err)
	}
	for _, p := range d.Restless {
		j.add(protocol.Soft, ReasonRestless, "process %d (%s), child of %d, could not be read as a whole: it executes one program after the other, %q the last time", p.PID, p.Comm, p.PPID, p.Exe)
	}
	// No more than a note: on a machine with many cores that compiles, hundreds of processes
	// that live for a moment are listed and gone when they are read.
	if d.Vanished > len(d.Processes)+16 {
		j.add(protocol.Info, ReasonVanished, "%d of %d processes ended while they were read", d.Vanished, d.Vanished+len(d.Processes))
	}
	return j.list
}

// judgedFiles are files that were judged or blamed already: the same path means
// another file in every container.
type judgedFiles map[[2]string]bool

func (s judgedFiles) add(f *protocol.File)            { s[[2]string{f.Container, f.Path}] = true }
func (s judgedFiles) has(container, path string) bool { return s[[2]string{container, path}] }

// file judges one file that is mapped executable. overlayfs shows a file of its
// lower layer with the inode number and the times of the image. A file that was
// written to was copied up: it keeps its number, but its change time is that of
// the copy, which no call can set. A file that a bind mount put in an image
// file's place has another number.
func (e *Procs) file(j *judge, f *protocol.File, names map[int]string, seen judgedFiles) error {
	runtime, err := e.ofRuntime(e.image, f.Path, f.SHA256)
	if err != nil {
		return err
	}
	if !runtime && f.Container != "" && !f.Deleted {
		if runtime, err = e.isImages(e.image, f.Path, f.SHA256); err != nil {
			return err
		}
	}
	if runtime && !f.Writable {
		seen.add(f)
		return nil
	}
	who := owners(f.PIDs, names)
	img, found, err := e.inImage(f.Path)
	if err != nil {
		return err
	}
	reason := ""
	switch {
	case f.Deleted:
		reason = ReasonDeletedExecutable
	case !found || f.Container != "":
		reason = ReasonUnknownExecutable
	case f.FSType != "overlay" && f.FSType != "squashfs":
		reason = ReasonForeignFilesystem
	case f.Size != img.Size(), f.CTime != img.Time(), uint32(f.Inode) != img.Number():
		reason = ReasonChangedFile
	case f.Writable:
		reason = ReasonWritableExecutable
	default:
		return nil
	}
	seen.add(f)
	if f.Container != "" {
		who += fmt.Sprintf(" in container %.12s", f.Container)
	}
	j.fatal(reason, "%s on %s, run by %s", f.Path, f.FSType, who)
	return nil
}

// processes judges the programs of processes that were not blamed already.
func (e *Procs) processes(j *judge, d *protocol.ProcsData, seen judgedFiles) error {
	if len(d.Processes) == 0 {
		j.fatal(ReasonUnknownProcess, "no process at all was listed, not even process 1")
	}
	agents := 0
	for _, p := range d.Processes {
		if p.Tracer != 0 {
			j.fatal(ReasonTracedProcess, "process %d (%s) is debugged by process %d", p.PID, p.Comm, p.Tracer)
		}
		if p.Exe == agentPath {
			agents++
		}
		exe := strings.TrimSuffix(p.Exe, " (deleted)")
		if seen.has(p.Container, exe) {
			continue
		}
		_, found, err := e.inImage(p.Exe)
		if err != nil {
			return err
		}
		if !found || p.Container != "" {
			j.fatal(ReasonUnknownProcess, "process %d (%s), child of %d, runs %q", p.PID, p.Comm, p.PPID, p.Exe)
		}
	}
	if agents > 1 {
		j.fatal(ReasonSecondAgent, "%d processes run %s", agents, agentPath)
	}
	return nil
}

// agentPath is the agent in the image: one of it runs.
const agentPath = "/usr/lib/portcullis/hpc-agent"

// code are the directories below which no mount may lie: of code and of configuration.
var code = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/boot", "/etc", "/root"}

// mayCover are files of the image that systemd itself covers where it needs to.
var mayCover = map[string]bool{"/etc/machine-id": true}

// kernelFS are the places of proc and sysfs at which systemd mounts other file
// systems of the kernel, and which.
var kernelFS = map[string][]string{
	"/proc":                     {"proc"},
	"/proc/sys/fs/binfmt_misc":  {"autofs", "binfmt_misc"},
	"/sys":                      {"sysfs"},
	"/sys/firmware/efi/efivars": {"efivarfs"},
	"/sys/fs/bpf":               {"bpf"},
	"/sys/fs/cgroup":            {"cgroup2"},
	"/sys/fs/fuse/connections":  {"fusectl"},
	"/sys/fs/pstore":            {"pstore"},
	"/sys/kernel/config":        {"configfs"},
	"/sys/kernel/debug":         {"debugfs"},
	"/sys/kernel/debug/tracing": {"tracefs"},
	"/sys/kernel/security":      {"securityfs"},
	"/sys/kernel/tracing":       {"tracefs"},
}

// hides tells whether a mount covers what the probes read: a directory over
// /proc/PID hides a process, a file over /proc/modules a module.
func hides(point string, m protocol.Mount) bool {
	if point != "/proc" && point != "/sys" && !strings.HasPrefix(point, "/proc/") && !strings.HasPrefix(point, "/sys/") {
		return false
	}
	return m.Root != "/" || !slices.Contains(kernelFS[point], m.FS)
}

// mounts judges what process 1 sees: the root must be the overlay, and nothing
// may cover a file of the image, a directory of code or what the kernel says.
func (e *Procs) mounts(j *judge, mounts []protocol.Mount) error {
	root := ""
	for _, m := range mounts {
		point := path.Clean(m.Point)
		if point == "/" {
			root = m.FS
			continue
		}
		covered, err := e.covers(point)
		if err != nil {
			return err
		}
		if covered || hides(point, m) {
			j.fatal(ReasonMount, "%s of device %s is mounted on %s", m.FS, m.Dev, point)
		}
	}
	if root != "overlay" {
		j.fatal(ReasonNoRoot, "the root is of type %q, want overlay", root)
	}
	return nil
}

func (e *Procs) covers(point string) (bool, error) {
	if mayCover[point] {
		return false, nil
	}
	for _, dir := range code {
		if point == dir || strings.HasPrefix(point, dir+"/") {
			return true, nil
		}
	}
	_, isFile, err := e.inImage(point)
	return isFile, err
}

func owners(pids []int, names map[int]string) string {
	var s []string
	for _, p := range pids {
		s = append(s, fmt.Sprintf("process %d (%s)", p, names[p]))
	}
	return strings.Join(s, ", ")
}
