package probe

import (
	"os"
	"path/filepath"
	"strings"

	"portcullis/attestserver/protocol"
)

// constants tells of the agent's own constants that were written to: its texts, its
// tables of methods, the paths that it reads. They are mapped from its file and
// nobody writes them, a loader neither, since the agent is linked statically: a page
// that is no longer the file's was changed from outside, to have the code, which is as
// it should be, read or do something else.
func (h Host) constants() (out []protocol.Patch, err error) {
	b, err := read(h.Proc, "self/maps")
	if err != nil {
		return nil, err
	}
	exe, err := os.Readlink(filepath.Join(h.Proc, "self/exe"))
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(b)) {
		m, err := parseMapping(strings.TrimSuffix(l, "\n"))
		if err != nil {
			return nil, err
		}
		if m.perms != "r--p" || m.path != exe || len(out) == protocol.MaxPatches {
			continue
		}
		at := holder{dir: "self", address: m.start, end: m.end, segment: protocol.Segment{Offset: m.offset, Length: m.end - m.start}}
		if pages, first, ok := h.patched(at); ok && pages > 0 {
			out = append(out, protocol.Patch{PID: os.Getpid(), Path: clean(exe), Offset: first, Pages: pages})
		}
	}
	return out, nil
}
