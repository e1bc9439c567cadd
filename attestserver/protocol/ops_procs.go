package protocol

import "fmt"

// Segment is a piece of a file that is mapped executable, in bytes.
type Segment struct {
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
}

// File is one file that processes have mapped executable.
type File struct {
	Path     string    `json:"path"`     // as the kernel shows it, without " (deleted)"
	Deleted  bool      `json:"deleted"`  // no longer under that path
	Writable bool      `json:"writable"` // some mapping can be written and executed
	Dev      string    `json:"dev"`      // of the mapping, major:minor
	Inode    uint64    `json:"inode"`
	FSType   string    `json:"fs"` // overlay, squashfs, tmpfs … or a hex magic
	Size     int64     `json:"size"`
	CTime    int64     `json:"ctime"` // nanoseconds: of the image where the file was never written to
	Segments []Segment `json:"segments"`
	PIDs     []int     `json:"pids"` // the first MaxFilePIDs that map it
	// Container is the one behind whose walls all processes live that map it, 64 hex
	// digits, empty for those of the machine: a file that both have is listed twice.
	Container string `json:"container,omitempty"`
	// Image is that container's image, where it has a program of this content: SHA-256
	// of its configuration, hex.
	Image string `json:"image,omitempty"`
	// SHA256 of the whole file, hex, where it lies behind a container's walls and Image
	// is empty, or where its path is RuncClone or begins with DockerCheck.
	SHA256 string `json:"sha256,omitempty"`
}

// Programs that the container runtime makes itself and then starts.
const (
	RuncClone   = "/memfd:runc_cloned:/proc/self/exe" // runc's copy of itself, its first program in a container
	DockerCheck = "/var/lib/docker/tmp/qemu-check"    // then a number and /check: which processors' programs run here
	DockerInit  = "/sbin/docker-init"                 // first process of a container that was started with --init
)

// MaxFilePIDs and MaxSegments bound what is listed of one file.
const (
	MaxFilePIDs = 4
	MaxSegments = 64
)

// Process is one process of user space.
type Process struct {
	PID   int    `json:"pid"`
	PPID  int    `json:"ppid"`
	Start uint64 `json:"start"` // clock ticks after boot: with PID, the process's identity
	Comm  string `json:"comm"`
	Exe   string `json:"exe"` // /proc/PID/exe
	// Tracer is the process that debugs it (ptrace(2)), 0 for none.
	Tracer int `json:"tracer"`
	// What the kernel lets it do (credentials(7), capabilities(7), seccomp(2)).
	UID        uint32 `json:"uid"`          // effective
	Caps       uint64 `json:"caps"`         // permitted
	Bounding   uint64 `json:"bounding"`     // what a program that it executes can get at most
	Seccomp    int    `json:"seccomp"`      // 0 none, 1 strict, 2 filter
	NoNewPrivs bool   `json:"no_new_privs"` // executing gives no more power
	UserNS     bool   `json:"user_ns"`      // in another user namespace than process 1: Caps count there
	// Container is the one behind whose walls it lives, empty for the machine itself.
	Container string `json:"container,omitempty"`
}

// Restless is a process that runs on and executes one program after the other, so that
// it was never read as a whole.
type Restless struct {
	PID   int    `json:"pid"`
	PPID  int    `json:"ppid"`
	Start uint64 `json:"start"` // clock ticks after boot
	Comm  string `json:"comm"`
	Exe   string `json:"exe"` // what it ran last
}

// MaxRestless bounds how many of them are listed.
const MaxRestless = 64

// Anonymous is executable memory that no file backs.
type Anonymous struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"` // address
	Length uint64 `json:"length"`
	Label  string `json:"label"` // [heap], [stack] or empty
}

// Mount is one mount that process 1 sees.
type Mount struct {
	Dev   string `json:"dev"`
	Root  string `json:"root"`
	Point string `json:"point"`
	FS    string `json:"fs"`
}

// ProcsData is the answer of op procs.
type ProcsData struct {
	Processes []Process   `json:"processes"`
	Kernel    int         `json:"kernel"` // kernel threads
	Files     []File      `json:"files"`
	Anonymous []Anonymous `json:"anonymous"`
	Mounts    []Mount     `json:"mounts"`
	Vanished  int         `json:"vanished"` // processes that ended while they were read
	// Restless are processes that were read again and again and never caught.
	Restless []Restless `json:"restless,omitempty"`
	// ReadingMS is how long the agent has been reading images of containers without
	// having come to an end, 0 where it has read them all.
	ReadingMS int64 `json:"reading_ms,omitempty"`
}

// Check bounds the lists and strings.
func (d *ProcsData) Check() error {
	for _, l := range []struct {
		what   string
		n, max int
	}{
		{"processes", len(d.Processes), MaxProcesses}, {"files", len(d.Files), MaxFiles},
		{"anonymous mappings", len(d.Anonymous), MaxFiles}, {"mounts", len(d.Mounts), MaxMounts},
		{"restless processes", len(d.Restless), MaxRestless},
	} {
		if err := atMost(l.what, l.n, l.max); err != nil {
			return err
		}
	}
	for i := range d.Files {
		if err := d.Files[i].check(); err != nil {
			return err
		}
	}
	for _, p := range d.Processes {
		if err := short("process", p.Comm, p.Exe, p.Container); err != nil {
			return err
		}
	}
	for _, p := range d.Restless {
		if err := short("process", p.Comm, p.Exe); err != nil {
			return err
		}
	}
	for _, m := range d.Mounts {
		if err := short("mount", m.Dev, m.Root, m.Point, m.FS); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) check() error {
	if len(f.Segments) > MaxSegments || len(f.PIDs) > MaxFilePIDs {
		return fmt.Errorf("file with %d segments and %d processes", len(f.Segments), len(f.PIDs))
	}
	return short("file", f.Path, f.Dev, f.FSType, f.Container, f.Image, f.SHA256)
}
