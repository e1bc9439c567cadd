package probe

import (
	"fmt"
	"strconv"
	"strings"
)

// mapping is one line of /proc/PID/maps.
type mapping struct {
	start, end uint64
	perms      string // rwxp
	offset     uint64
	dev        string // major:minor, hex
	inode      uint64
	path       string // may hold spaces; empty for anonymous memory
}

func (m mapping) executable() bool { return m.perms[2] == 'x' }
func (m mapping) writable() bool   { return m.perms[1] == 'w' }

// maxMappings bounds the mappings of one process (vm.max_map_count is 65,530,
// or 1,048,576 on some distributions).
const maxMappings = 1 << 20

// executableMappings reads /proc/PID/maps (proc_pid_maps(5)) and keeps what can
// be executed.
func executableMappings(maps string) ([]mapping, error) {
	var out []mapping
	n := 0
	for l := range strings.Lines(maps) {
		if n++; n > maxMappings {
			return nil, fmt.Errorf("maps: more than %d mappings", maxMappings)
		}
		m, err := parseMapping(strings.TrimSuffix(l, "\n"))
		if err != nil {
			return nil, err
		}
		if m.executable() {
			out = append(out, m)
		}
	}
	return out, nil
}

func parseMapping(l string) (m mapping, err error) {
	bad := func() (mapping, error) { return mapping{}, fmt.Errorf("maps: line %.120q", l) }
	var f [5]string
	rest := l
	for i := range f {
		f[i], rest, _ = strings.Cut(rest, " ")
	}
	from, to, ok := strings.Cut(f[0], "-")
	if !ok || len(f[1]) != 4 {
		return bad()
	}
	for _, n := range []struct {
		to   *uint64
		from string
		base int
	}{{&m.start, from, 16}, {&m.end, to, 16}, {&m.offset, f[2], 16}, {&m.inode, f[4], 10}} {
		if *n.to, err = strconv.ParseUint(n.from, n.base, 64); err != nil {
			return bad()
		}
	}
	if m.end <= m.start || m.offset+(m.end-m.start) < m.offset {
		return bad()
	}
	m.perms, m.dev, m.path = f[1], f[3], strings.TrimLeft(rest, " ")
	return m, nil
}

// procStat is what is wanted of /proc/PID/stat (proc_pid_stat(5)).
type procStat struct {
	comm   string
	state  byte
	ppid   int
	kernel bool // a kernel thread: PF_KTHREAD
	ending bool // on its way out, its memory may be gone: PF_EXITING
	start  uint64
}

// Process flags, include/linux/sched.h.
const (
	pfExiting = 0x00000004
	pfKthread = 0x00200000
)

// parseStat reads /proc/PID/stat. The name stands in brackets and may hold
// brackets and spaces itself, so that the last bracket ends it.
func parseStat(s string) (p procStat, err error) {
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return p, fmt.Errorf("stat: %.120q", s)
	}
	p.comm = s[open+1 : end]
	f := strings.Fields(s[end+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return p, fmt.Errorf("stat: %.120q", s)
	}
	p.state = f[0][0]
	if p.ppid, err = strconv.Atoi(f[1]); err != nil {
		return p, fmt.Errorf("stat: parent: %w", err)
	}
	flags, err := strconv.ParseUint(f[6], 10, 64)
	if err != nil {
		return p, fmt.Errorf("stat: flags: %w", err)
	}
	p.kernel, p.ending = flags&pfKthread != 0, flags&pfExiting != 0
	if p.start, err = strconv.ParseUint(f[19], 10, 64); err != nil {
		return p, fmt.Errorf("stat: start time: %w", err)
	}
	return p, nil
}
