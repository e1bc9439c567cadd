package probe

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"portcullis/attestserver/protocol"
)

// power reads who debugs a process and what the kernel lets it do
// (proc_pid_status(5)). ok is false where it has ended.
func (h Host) power(p *protocol.Process) (ok bool) {
	pid := strconv.Itoa(p.PID)
	b, err := read(h.Proc, pid, "status")
	if err != nil {
		return false
	}
	for l := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(l, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch name {
		case "TracerPid":
			p.Tracer, _ = strconv.Atoi(f[0])
		case "Uid": // real, effective, saved, of the file system
			if len(f) == 4 {
				uid, _ := strconv.ParseUint(f[1], 10, 32)
				p.UID = uint32(uid)
			}
		case "CapPrm":
			p.Caps, _ = strconv.ParseUint(f[0], 16, 64)
		case "CapBnd":
			p.Bounding, _ = strconv.ParseUint(f[0], 16, 64)
		case "NoNewPrivs":
			p.NoNewPrivs = f[0] == "1"
		case "Seccomp":
			p.Seccomp, _ = strconv.Atoi(f[0])
		}
	}
	own, err := os.Readlink(filepath.Join(h.Proc, pid, "ns/user"))
	if err != nil {
		return false
	}
	first, err := os.Readlink(filepath.Join(h.Proc, "1/ns/user"))
	p.UserNS = err != nil || own != first
	return true
}
