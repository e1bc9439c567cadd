// Package probe reads the machine that the agent runs on: one file an op, each
// the twin of a file in attestserver/expect. The agent's runner is the only one
// that may call it, and lab/proxy as an attacker. Probes read and never write; what they
// cannot see is in the doc comment of each.
package probe

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Host is the machine as probes see it. The zero value is the real one; tests
// put a tree of recorded files in its place.
type Host struct {
	Proc string // /proc
	Sys  string // /sys
	Dev  string // /dev
	Root string // /
	Mask string // /usr/lib/portcullis/ktext.mask

	// Links lists the network interfaces; nil asks the kernel by netlink.
	Links func() ([]protocol.Link, error)
	// NFT dumps what the packet filter has of one kind (NFT_MSG_GETTABLE, -CHAIN,
	// -RULE); nil asks the kernel.
	NFT func(kind int) ([][]byte, error)
	// Rules lists the routing rules that are not every kernel's; nil asks the kernel.
	Rules func() ([]string, error)
	// Verity reads the live table of a device-mapper device; nil asks the kernel.
	Verity func(device string) (protocol.Verity, error)
	// Special reads a file of a kernel file system (securityfs, tracefs, debugfs)
	// wherever it is mounted, even nowhere; nil mounts it privately.
	Special func(fstype, name string) ([]byte, error)
	// SpecialDir lists a directory of one; nil mounts it privately.
	SpecialDir func(fstype, name string) ([]string, error)
	// Exe reads the link to the program of a process; nil asks the kernel.
	Exe func(link string) (string, error)
	// Stat describes the file that a link below /proc leads to; nil asks the kernel.
	Stat func(link string) (FileStat, error)
	// Content opens that file; nil asks the kernel.
	Content func(link string) (io.ReadCloser, error)
	// TPM opens the TPM 2.0; nil opens tpmrm0 in Dev. fs.ErrNotExist where there is none.
	TPM func() (transport.TPMCloser, error)
	// TSM opens the kernel's reports of confidential machines, and what closes it
	// again; nil mounts configfs privately. fs.ErrNotExist where there are none.
	TSM func() (client configfsi.Client, done func(), err error)
	// CTime is the time of change of a file, in nanoseconds; nil is what the kernel says.
	CTime func(*unix.Stat_t) int64
	// Clocks reads the raw clock in ns, the time since boot and the wall clock in ms; nil asks the kernel.
	Clocks func() (raw, boot, wall int64, err error)
	// BPF lists the eBPF objects; nil asks the kernel.
	BPF func() ([]protocol.BPFObject, error)
	// Keys describes the keys of a keyring; nil asks the kernel.
	Keys func(serial int) ([]string, error)
	// Uevents opens the kernel's messages about devices; nil opens its socket.
	Uevents func() (next func() ([]byte, error), err error)
	// Uptime is the time since the kernel started; nil asks the kernel.
	Uptime func() time.Duration
	// TSC is the rate of the time stamp counter in kHz, 0 where it cannot be
	// measured; nil measures it.
	TSC func() uint64
	// PUF is an experiment and nil outside of tests.
	PUF PUF
}

func (h Host) withDefaults() Host {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&h.Proc, "/proc")
	def(&h.Sys, "/sys")
	def(&h.Dev, "/dev")
	def(&h.Root, "/")
	def(&h.Mask, "/usr/lib/portcullis/ktext.mask")
	if h.Links == nil {
		h.Links = netlinkLinks
	}
	if h.NFT == nil {
		h.NFT = nftDump
	}
	if h.Rules == nil {
		h.Rules = netlinkRules
	}
	if h.Verity == nil {
		h.Verity = h.verityTable
	}
	if h.Special == nil {
		h.Special = special
	}
	if h.SpecialDir == nil {
		h.SpecialDir = specialDir
	}
	if h.Exe == nil {
		h.Exe = os.Readlink
	}
	if h.Stat == nil {
		h.Stat = statFile
	}
	if h.Content == nil {
		h.Content = openFile
	}
	if h.TPM == nil {
		h.TPM = h.openTPM
	}
	if h.TSM == nil {
		h.TSM = h.openTSM
	}
	if h.CTime == nil {
		h.CTime = func(st *unix.Stat_t) int64 { return st.Ctim.Nano() }
	}
	if h.Clocks == nil {
		h.Clocks = clocks
	}
	if h.BPF == nil {
		h.BPF = bpfObjects
	}
	if h.Keys == nil {
		h.Keys = keysOf
	}
	if h.Uevents == nil {
		h.Uevents = kernelUevents
	}
	if h.Uptime == nil {
		h.Uptime = bootTime
	}
	if h.TSC == nil {
		h.TSC = tscRate
	}
	return h
}

// FileStat is what is wanted of stat(2) and statfs(2).
type FileStat struct {
	Size, CTime int64 // bytes, nanoseconds
	Inode       uint64
	FSType      string
}

// All returns every probe, each on the same machine.
func All(h Host) []protocol.Probe {
	h = h.withDefaults()
	l := newLayers(h)
	return []protocol.Probe{
		&Boot{h}, &Block{h}, &Procs{h, l}, &Pmem{h, l}, &Modules{h}, &Net{h}, &Hw{h}, &Ktext{Host: h}, &Tpm{Host: h}, &Tsm{h},
		&Krodata{h}, &Trace{h}, NewUevent(h), &Files{h},
		&Time{h}, &Noise{Host: h}, &Container{h}, &Ima{h, l},
	}
}

// maxFile bounds what is read of one file of /proc or /sys.
const maxFile = 16 << 20

// read returns a file of the machine, at most maxFile bytes.
func read(parts ...string) ([]byte, error) {
	f, err := os.Open(filepath.Join(parts...))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: more than %d bytes", f.Name(), maxFile)
	}
	return b, nil
}

// line returns a file of one line, without the line's end.
func line(parts ...string) (string, error) {
	b, err := read(parts...)
	return strings.TrimRight(string(b), "\n"), err
}

// optional is line for a file that may be missing; strings in it are trimmed.
func optional(parts ...string) string {
	s, err := line(parts...)
	if err != nil || len(s) > protocol.MaxString {
		return ""
	}
	return strings.TrimSpace(strings.ToValidUTF8(s, "?"))
}

func number(parts ...string) (uint64, error) {
	s, err := line(parts...)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(s), 10, 64)
}

// answer encodes data and keys a digest over it, so that the data cannot have
// been prepared before the challenge came.
func answer(key protocol.OpKey, name string, params []byte, data any) (protocol.Output, error) {
	b, err := protocol.EncodeOp(data)
	if err != nil {
		return protocol.Output{}, err
	}
	return protocol.Output{Digest: key.Digest(name, params, b), Data: b}, nil
}

func alive(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the deadline has passed: %w", err)
	}
	return nil
}
