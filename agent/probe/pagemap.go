package probe

import (
	"encoding/binary"
	"os"
	"path/filepath"

	"portcullis/attestserver/protocol"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
)

// pagemapChunk is how many entries are read at a time.
const pagemapChunk = 8192

// patched counts the pages of a file's executable mapping that are no longer
// the file's: a write through a debugger or /proc/PID/mem gives the process a
// page of its own. It returns where the first one lies in the file. ok is false
// where the process ended meanwhile.
func (h Host) patched(at holder) (pages int, first uint64, ok bool) {
	f, err := os.Open(filepath.Join(h.Proc, at.dir, "pagemap"))
	if err != nil {
		return 0, 0, false
	}
	defer f.Close()
	buf := make([]byte, 8*pagemapChunk)
	for a := at.address; a < at.address+at.segment.Length; a += pagemapChunk * protocol.PageSize {
		n := min((at.address+at.segment.Length-a+protocol.PageSize-1)/protocol.PageSize, pagemapChunk)
		if _, err := f.ReadAt(buf[:8*n], int64(a/protocol.PageSize*8)); err != nil {
			return 0, 0, false
		}
		for i := range n {
			e := binary.LittleEndian.Uint64(buf[8*i:])
			if e&pageOfFile != 0 || e&(pagePresent|pageSwapped) == 0 {
				continue
			}
			if pages++; pages == 1 {
				first = at.segment.Offset + (a - at.address) + i*protocol.PageSize
			}
		}
	}
	return pages, first, true
}

// patches lists every process with patched code of a file.
func (h Host) patches(s *scan) (out []protocol.Patch) {
	for _, f := range s.files {
		for _, at := range f.holders {
			pages, first, ok := h.patched(at)
			if !ok || pages == 0 || !h.holds(at, f) {
				continue
			}
			if len(out) == protocol.MaxPatches {
				return out
			}
			out = append(out, protocol.Patch{PID: at.pid, Path: f.Path, Offset: first, Pages: pages})
		}
	}
	return out
}
