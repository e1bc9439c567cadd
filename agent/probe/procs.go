package probe

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"portcullis/attestserver/protocol"
)

// Procs lists every process, every file that is mapped executable, all
// executable memory without a file, and what is mounted where.
//
// It finds a program that is not in the image, however it was started (from a
// tmpfs, a memfd, a deleted file, another file system), a file of the image
// that was covered by a mount or copied up into the overlay's upper layer, and
// injected code in anonymous memory.
//
// Programs of a container are compared with the files of the image that the
// runtime's records name, wherever they lie (layers.go).
//
// It cannot see scripts (their interpreter is a file of the image), changed
// data, a program that ran and ended between two challenges, nor processes that
// the kernel hides. A process that ends while it is read is counted, not judged. One that
// goes on and executes another program whenever it is read is told as restless.
type Procs struct {
	Host
	layers *layers
}

// Name implements protocol.Probe.
func (*Procs) Name() string { return protocol.OpProcs }

// Run implements protocol.Probe.
func (p *Procs) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	if err := protocol.CheckNone(params); err != nil {
		return protocol.Output{}, err
	}
	s, err := p.walk(ctx)
	if err != nil {
		return protocol.Output{}, err
	}
	reading, err := p.layers.origins(ctx, s)
	if err != nil {
		return protocol.Output{}, err
	}
	d := protocol.ProcsData{ReadingMS: reading.Milliseconds(), Processes: s.processes, Kernel: s.kernel, Anonymous: s.anonymous, Vanished: s.vanished, Restless: s.restless}
	for _, f := range s.files {
		d.Files = append(d.Files, f.File)
	}
	b, err := read(p.Proc, "1/mountinfo")
	if err != nil {
		return protocol.Output{}, err
	}
	if d.Mounts, err = parseMountinfo(b); err != nil {
		return protocol.Output{}, err
	}
	return answer(key, p.Name(), params, d)
}

// parseMountinfo reads /proc/PID/mountinfo (proc_pid_mountinfo(5)): id, parent,
// major:minor, root, point, options, optional fields up to "-", type, source,
// super options.
func parseMountinfo(b []byte) ([]protocol.Mount, error) {
	var out []protocol.Mount
	for l := range bytes.Lines(b) {
		before, after, ok := strings.Cut(strings.TrimSuffix(string(l), "\n"), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 1 {
			return nil, fmt.Errorf("mountinfo: line %.120q", l)
		}
		if len(out) == protocol.MaxMounts {
			return nil, fmt.Errorf("mountinfo: more than %d mounts", protocol.MaxMounts)
		}
		out = append(out, protocol.Mount{Dev: f[2], Root: clean(unescape(f[3])), Point: clean(unescape(f[4])), FS: clean(g[0])})
	}
	return out, nil
}

// unescape undoes the octal escapes of spaces, tabs, line ends and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
