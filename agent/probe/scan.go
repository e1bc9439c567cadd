package probe

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// scan is one walk over all processes.
type scan struct {
	processes []protocol.Process
	kernel    int
	files     []*mappedFile // sorted by path, device and inode
	anonymous []protocol.Anonymous
	vanished  int
	restless  []protocol.Restless

	index map[fileKey]*mappedFile
}

type fileKey struct {
	path, dev string
	inode     uint64
	deleted   bool
	container string
}

type mappedFile struct {
	protocol.File
	holders   []holder
	key       fileKey
	gone      bool // nobody maps it any more
	elsewhere bool // judged by its digest: the gateway has no such file
}

// holder is where a process has a segment in its memory.
type holder struct {
	pid     int
	dir     string // below /proc, where its maps were read
	start   uint64 // of the process
	address uint64 // of the mapping
	end     uint64
	segment protocol.Segment
}

// maxHolders bounds the holders that are kept of one file.
const maxHolders = 256

const deletedSuffix = " (deleted)"

// walk reads every process. A process that ends meanwhile, or whose id is given to
// another, is counted and is no finding; one that is never caught is restless.
func (h Host) walk(ctx context.Context) (*scan, error) {
	entries, err := os.ReadDir(h.Proc)
	if err != nil {
		return nil, err
	}
	s := &scan{index: map[fileKey]*mappedFile{}}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 0 {
			continue
		}
		if err := alive(ctx); err != nil {
			return nil, err
		}
		if err := s.add(ctx, h, pid); err != nil {
			return nil, err
		}
	}
	err = s.settle(ctx, h, func() {
		for _, f := range s.files {
			f.gone = f.FSType == "" && !h.stillHeld(f)
		}
	})
	return s, err
}

// rereadTries is how often processes are read again that end or execute another
// program while they are read. Nobody honest executes so many programs one after the
// other just when each is read: chains such as sh, env, nice, timeout have four.
const rereadTries = 8

// settle has look find files that nobody maps any more, forgets them, and reads
// those processes again that did map them: they have ended, or execute another
// program. Who is never caught has vanished, or is restless if it is still there.
func (s *scan) settle(ctx context.Context, h Host, look func()) error {
	for try := range rereadTries {
		look()
		stale := s.forget()
		if len(stale) == 0 {
			break
		}
		if try == rereadTries-1 {
			for _, pid := range slices.Sorted(maps.Keys(stale)) {
				s.missed(h, pid, stale[pid])
			}
			break
		}
		for _, pid := range slices.Sorted(maps.Keys(stale)) {
			if err := s.add(ctx, h, pid); err != nil {
				return err
			}
		}
	}
	slices.SortFunc(s.files, func(a, b *mappedFile) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Dev, b.Dev), cmp.Compare(a.Inode, b.Inode), strings.Compare(a.Container, b.Container))
	})
	return nil
}

// forget takes out files that are gone and the processes that mapped them, which it
// returns with the time of their start.
func (s *scan) forget() (stale map[int]uint64) {
	stale = map[int]uint64{}
	s.files = slices.DeleteFunc(s.files, func(f *mappedFile) bool {
		if !f.gone {
			return false
		}
		for _, at := range f.holders {
			stale[at.pid] = at.start
		}
		delete(s.index, f.key)
		return true
	})
	s.processes = slices.DeleteFunc(s.processes, func(p protocol.Process) bool {
		_, ok := stale[p.PID]
		return ok
	})
	return stale
}

func (h Host) stat(pid int) (procStat, error) {
	b, err := read(h.Proc, strconv.Itoa(pid), "stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(b))
}

// missed notes a process that could not be read: it has ended, or it executes one
// program after the other and never had the same one before and after it was read.
// What has ended and waits for its parent has no memory, and is not counted.
func (s *scan) missed(h Host, pid int, start uint64) {
	st, err := h.stat(pid)
	if err != nil || st.start != start {
		s.vanished++
		return
	}
	maps, dir, _ := h.maps(pid, st)
	if (maps != "" || !dead(st)) && len(s.restless) < protocol.MaxRestless {
		exe, _ := h.Exe(filepath.Join(h.Proc, dir, "exe"))
		s.restless = append(s.restless, protocol.Restless{PID: pid, PPID: st.ppid, Start: st.start, Comm: clean(st.comm), Exe: clean(exe)})
	}
}

// add reads one process, as often as it executes another program meanwhile. Only limits
// that are passed are errors.
func (s *scan) add(ctx context.Context, h Host, pid int) error {
	var start uint64
	for try := range rereadTries {
		if err := alive(ctx); err != nil {
			return err
		}
		st, err := h.stat(pid)
		switch {
		case err != nil || try > 0 && st.start != start:
			s.vanished++
			return nil
		case st.kernel:
			s.kernel++
			return nil
		}
		start = st.start
		if done, err := s.addOnce(ctx, h, pid, st); done || err != nil {
			return err
		}
	}
	s.missed(h, pid, start)
	return nil
}

// addOnce reads a process. done is false where it executed another program while it was
// read, or has ended.
func (s *scan) addOnce(ctx context.Context, h Host, pid int, st procStat) (done bool, err error) {
	maps, dir, exe, ok := h.program(ctx, pid, st)
	if !ok {
		return false, nil
	}
	mappings, err := executableMappings(maps)
	if err != nil {
		return false, fmt.Errorf("process %d: %w", pid, err)
	}
	if len(s.processes) == protocol.MaxProcesses {
		return false, fmt.Errorf("more than %d processes", protocol.MaxProcesses)
	}
	p := protocol.Process{PID: pid, PPID: st.ppid, Start: st.start, Comm: clean(st.comm), Exe: clean(exe), Container: h.walls(dir)}
	// Power is of the program that it runs.
	ok = h.power(&p)
	if now, _ := h.Exe(filepath.Join(h.Proc, dir, "exe")); !ok || now != exe {
		return false, nil
	}
	s.processes = append(s.processes, p)
	for _, m := range mappings {
		if err := s.mapping(h, p, dir, m); err != nil {
			return false, err
		}
	}
	return true, nil
}

// A helper that the kernel starts (modprobe) is a process without memory until
// it executes its program: it is given that much time.
const (
	programTries = 5
	programWait  = 10 * time.Millisecond
)

// program reads what a process runs. ok is false where it ended meanwhile.
func (h Host) program(ctx context.Context, pid int, st procStat) (maps, dir, exe string, ok bool) {
	for try := range programTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return "", "", "", false
			case <-time.After(programWait):
			}
		}
		var err error
		if maps, dir, err = h.maps(pid, st); err != nil {
			return "", "", "", false
		}
		exe, _ = h.Exe(filepath.Join(h.Proc, dir, "exe")) // empty: it has no program yet
		again, err := h.stat(pid)
		if err != nil || again.start != st.start || (maps == "" && dead(again)) {
			return "", "", "", false
		}
		if maps != "" && exe != "" {
			break
		}
	}
	return maps, dir, exe, true
}

func dead(st procStat) bool { return st.ending || st.state == 'Z' || st.state == 'X' }

// maps reads the mappings of a process. The first thread of a process may have
// ended while others run on: then one of those is read.
func (h Host) maps(pid int, st procStat) (maps, dir string, err error) {
	dir = strconv.Itoa(pid)
	if dead(st) {
		threads, err := os.ReadDir(filepath.Join(h.Proc, dir, "task"))
		if err != nil {
			return "", "", err
		}
		for _, t := range threads {
			b, err := read(h.Proc, dir, "task", t.Name(), "maps")
			if err == nil && len(b) > 0 {
				return string(b), filepath.Join(dir, "task", t.Name()), nil
			}
		}
		return "", dir, nil
	}
	b, err := read(h.Proc, dir, "maps")
	return string(b), dir, err
}

func (s *scan) mapping(h Host, p protocol.Process, dir string, m mapping) error {
	pid := p.PID
	if m.inode == 0 && (m.path == "[vdso]" || m.path == "[vsyscall]") {
		return nil // code that the kernel itself puts there
	}
	if m.inode == 0 && !strings.HasPrefix(m.path, "/") {
		if len(s.anonymous) == protocol.MaxFiles {
			return fmt.Errorf("more than %d executable anonymous mappings", protocol.MaxFiles)
		}
		s.anonymous = append(s.anonymous, protocol.Anonymous{PID: pid, Start: m.start, Length: m.end - m.start, Label: clean(m.path)})
		return nil
	}
	f, err := s.file(h, dir, p.Container, m)
	if err != nil {
		return err
	}
	f.Writable = f.Writable || m.writable()
	seg := protocol.Segment{Offset: m.offset, Length: m.end - m.start}
	// What lies behind the file's end cannot be read from memory either.
	if pages := roundUp(f.Size); f.Size > 0 && seg.Offset < pages {
		seg.Length = min(seg.Length, pages-seg.Offset)
	}
	if !slices.Contains(f.Segments, seg) {
		if len(f.Segments) == protocol.MaxSegments {
			return fmt.Errorf("%s: more than %d executable segments", f.Path, protocol.MaxSegments)
		}
		f.Segments = append(f.Segments, seg)
	}
	if len(f.PIDs) < protocol.MaxFilePIDs && !slices.Contains(f.PIDs, pid) {
		f.PIDs = append(f.PIDs, pid)
	}
	if len(f.holders) < maxHolders {
		f.holders = append(f.holders, holder{pid, dir, p.Start, m.start, m.end, seg})
	}
	return nil
}

func roundUp(size int64) uint64 {
	return (uint64(max(size, 0)) + protocol.PageSize - 1) &^ (protocol.PageSize - 1)
}

// file describes the file of a mapping. A process that ends meanwhile leaves a
// description without a file system, which the next one that maps it completes.
func (s *scan) file(h Host, dir, container string, m mapping) (*mappedFile, error) {
	k := fileKey{dev: m.dev, inode: m.inode, container: container}
	k.path, k.deleted = strings.CutSuffix(m.path, deletedSuffix)
	f := s.index[k]
	if f != nil && f.FSType != "" {
		return f, nil
	}
	if f == nil {
		if len(s.files) == protocol.MaxFiles {
			return nil, fmt.Errorf("more than %d executable files are mapped", protocol.MaxFiles)
		}
		f = &mappedFile{File: protocol.File{Path: clean(k.path), Deleted: k.deleted, Dev: k.dev, Inode: k.inode, Container: container}, key: k}
		s.index[k] = f
		s.files = append(s.files, f)
	}
	// map_files leads to the very file that is mapped, whatever lies at its path now.
	link := filepath.Join(h.Proc, dir, "map_files", fmt.Sprintf("%x-%x", m.start, m.end))
	if st, err := h.Stat(link); err == nil {
		f.Inode, f.Size, f.CTime, f.FSType = st.Inode, st.Size, st.CTime, st.FSType
	}
	return f, nil
}

// stillHeld tells whether a process of the walk has the file mapped even now.
func (h Host) stillHeld(f *mappedFile) bool {
	return slices.ContainsFunc(f.holders, func(at holder) bool { return h.holds(at, f) })
}

func statFile(link string) (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		return FileStat{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(link, &fs); err != nil {
		return FileStat{}, err
	}
	return FileStat{Size: st.Size, CTime: st.Ctim.Nano(), Inode: st.Ino, FSType: fsName(int64(fs.Type))}, nil
}

// fsName names a file system by its magic number (statfs(2)).
func fsName(magic int64) string {
	switch magic {
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.SQUASHFS_MAGIC:
		return "squashfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.PROC_SUPER_MAGIC:
		return "proc"
	case unix.RAMFS_MAGIC:
		return "ramfs"
	}
	return fmt.Sprintf("0x%x", uint64(magic))
}

// clean makes a name fit for JSON and for a log.
func clean(s string) string { return protocol.Clean(s) }
