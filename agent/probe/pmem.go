package probe

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"portcullis/attestserver/protocol"
)

// Pmem looks at the executable memory of processes. It lists every mapping of a
// file that holds pages which are no longer the file's, and it reads pages: one
// of every segment that is mapped, and more at random, which the gateway
// compares with the files of the image.
//
// It finds code that was patched in memory (a debugger, /proc/PID/mem, a
// uprobe) and another file under an image file's path, since of that nearly
// every page differs; and, of the agent itself, constants that were written to.
//
// Of a container's programs no page is read, because the gateway has not their
// files: what op procs says of them is a digest of the whole file, and pages that
// are no longer the file's are told as of any other.
//
// It samples what it reads: a file of the page cache that was changed in few
// bytes, which the kernel's own accounting does not show, is found only in
// time. Other data is not read.
type Pmem struct {
	Host
	layers *layers
}

// Name implements protocol.Probe.
func (*Pmem) Name() string { return protocol.OpPmem }

type pick struct {
	file    *mappedFile
	segment protocol.Segment
	n       int
}

// Run implements protocol.Probe.
func (p *Pmem) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.PmemParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	s, err := p.walk(ctx)
	if err != nil {
		return protocol.Output{}, err
	}
	if _, err := p.layers.origins(ctx, s); err != nil {
		return protocol.Output{}, err
	}
	var d protocol.PmemData
	m := memories{proc: p.Proc, open: map[int]*os.File{}}
	defer m.close()
	keyed := key.MACs()
	for _, c := range picks(s, want.Extra, first(key, want.Seed)) {
		if err := alive(ctx); err != nil {
			return protocol.Output{}, err
		}
		offset := keyed.PickPage(want.Seed, c.file.Path, c.segment, c.n)
		page, pid, ok := m.page(p.Host, c, offset)
		if !ok {
			d.Vanished++
			continue
		}
		d.Pages = append(d.Pages, protocol.Page{Path: c.file.Path, Segment: c.segment, Pick: c.n, Offset: offset,
			PID: pid, MAC: keyed.PageMAC(c.file.Path, offset, page)})
	}
	if d.Patches, err = p.constants(); err != nil {
		return protocol.Output{}, err
	}
	if d.Patches = append(d.Patches, p.patches(s)...); len(d.Patches) > protocol.MaxPatches {
		d.Patches = d.Patches[:protocol.MaxPatches]
	}
	return answer(key, p.Name(), params, d)
}

// first draws where the extra pages and the holders begin: nobody can know it
// before the question, so that a patch in one process of many is met in time.
func first(key protocol.OpKey, seed string) uint64 {
	d := key.Digest("pmem-first", []byte(seed), nil)
	return binary.BigEndian.Uint64(d[:8]) >> 1
}

// picks lists what is read: every segment once, then extra ones in turn, from
// the one that start says on. The holders of each file are put in an order that
// begins elsewhere each time, too: the same page can differ in every process.
func picks(s *scan, extra int, start uint64) []pick {
	var out []pick
	for _, f := range s.files {
		if n := uint64(len(f.holders)); n > 0 {
			f.holders = slices.Concat(f.holders[start%n:], f.holders[:start%n])
		}
		if f.elsewhere {
			continue
		}
		for _, seg := range f.Segments {
			out = append(out, pick{f, seg, 0})
		}
	}
	for i, n := 0, len(out); n > 0 && i < extra && len(out) < protocol.MaxPages+protocol.MaxFiles; i++ {
		c := out[(uint64(i)+start)%uint64(n)]
		c.n = i/n + 1
		out = append(out, c)
	}
	return out
}

// memories keeps the last few /proc/PID/mem files open.
type memories struct {
	proc  string
	open  map[int]*os.File
	order []int
}

const maxOpenMemories = 64

// page reads one page from the first process that still has it.
func (m *memories) page(h Host, c pick, offset uint64) (page []byte, pid int, ok bool) {
	for _, holder := range c.file.holders {
		if holder.segment != c.segment {
			continue
		}
		f, err := m.file(holder.pid)
		if err != nil {
			continue
		}
		page := make([]byte, protocol.PageSize)
		if _, err := f.ReadAt(page, int64(holder.address+offset-c.segment.Offset)); err != nil {
			continue
		}
		if !h.holds(holder, c.file) {
			continue
		}
		return page, holder.pid, true
	}
	return nil, 0, false
}

// holds tells whether what was read still was the process and the mapping of
// the walk: its id may have gone to another one, or it may have executed
// another program since.
func (h Host) holds(at holder, f *mappedFile) bool {
	st, err := h.stat(at.pid)
	if err != nil || st.start != at.start {
		return false
	}
	link, err := os.Readlink(filepath.Join(h.Proc, at.dir, "map_files", fmt.Sprintf("%x-%x", at.address, at.end)))
	return err == nil && clean(strings.TrimSuffix(link, deletedSuffix)) == f.Path
}

func (m *memories) file(pid int) (*os.File, error) {
	if f := m.open[pid]; f != nil {
		return f, nil
	}
	f, err := os.Open(filepath.Join(m.proc, strconv.Itoa(pid), "mem"))
	if err != nil {
		return nil, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	if len(m.order) == maxOpenMemories {
		m.open[m.order[0]].Close()
		delete(m.open, m.order[0])
		m.order = slices.Delete(m.order, 0, 1)
	}
	m.open[pid] = f
	m.order = append(m.order, pid)
	return f, nil
}

func (m *memories) close() {
	for _, f := range m.open {
		f.Close()
	}
}
