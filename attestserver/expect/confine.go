package expect

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"portcullis/attestserver/protocol"
)

// noteConfined is the note of a boot session with what each process was allowed
// when it was seen last.
const noteConfined = "procs.confined"

// confined is what is remembered of one process: confinedSize bytes.
type confined struct {
	pid      uint32
	start    uint64
	program  [8]byte // digest of its path
	caps     uint64
	bounding uint64
	flags    uint8
}

const confinedSize = 4 + 8 + 8 + 8 + 8 + 1

// Flags of confined.
const (
	wasFiltered = 1 << iota // by seccomp
	wasNoNewPrivs
	wasOtherUserNS
	wasRoot
	wasSettled // seen with the same program before
)

// handOver are programs that raise the power of their process and then have it
// execute another program. Where the image has one, more power after another
// program was executed says nothing.
var handOver = []string{"/usr/bin/doas", "/usr/bin/pkexec", "/usr/bin/run0", "/usr/bin/sudo", "/usr/bin/super"}

// confinement holds each process to what it was allowed when it was seen before.
// The kernel only ever takes away: a seccomp filter and no_new_privs stay, also
// when another program is executed, the bounding set shrinks, and nobody returns
// into a parent of a user namespace. Permitted capabilities grow only where a
// program is executed: by root, or a program that the image lets raise them.
// Whatever else grows was written into the kernel's memory.
func (e *Procs) confinement(j *judge, st *protocol.ImageState, list []protocol.Process) error {
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	before := parseConfined(st.Notes[noteConfined])
	handed, err := e.handsOver()
	if err != nil {
		return err
	}
	var note []byte
	for _, p := range list {
		now := confinedOf(p)
		old, known := before[now.pid]
		if !known || old.start != now.start {
			note = now.append(note)
			continue
		}
		if old.program == now.program {
			now.flags |= wasSettled
		}
		what, err := e.grown(old, now, p, handed)
		if err != nil {
			return err
		}
		if len(what) > 0 {
			now = old // told until it ends
			j.fatal(ReasonMorePower, "process %d (%s), %s: %s", p.PID, p.Comm, p.Exe, what)
		}
		note = now.append(note)
	}
	st.Notes[noteConfined] = note
	return nil
}

// grown names what a process may do now and might not when it was seen last.
func (e *Procs) grown(old, now confined, p protocol.Process, handed bool) (what string, err error) {
	lost := old.flags &^ now.flags
	switch {
	case lost&wasFiltered != 0:
		return "its seccomp filter is gone", nil
	case lost&wasNoNewPrivs != 0:
		return "no_new_privs is gone", nil
	case lost&wasOtherUserNS != 0:
		return "it has left its user namespace", nil
	case now.flags&wasOtherUserNS != 0:
		return "", nil // its capabilities count in there only
	case now.bounding&^old.bounding != 0:
		return "its bounding set grew", nil
	case now.caps&^old.caps == 0 || old.flags&wasRoot != 0:
		return "", nil
	case old.program == now.program:
		return "its capabilities grew", nil
	case handed || p.Container != "" || old.flags&wasSettled == 0:
		return "", nil // it was on its way from one program to another
	}
	img, found, err := e.inImage(p.Exe)
	if err != nil || !found || img.Raises() {
		return "", err
	}
	return "its capabilities grew, and its program cannot raise them", nil
}

// handsOver tells whether the image has one of handOver.
func (e *Procs) handsOver() (bool, error) {
	for _, p := range handOver {
		if _, found, err := e.inImage(p); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

func confinedOf(p protocol.Process) confined {
	sum := sha256.Sum256([]byte(p.Exe))
	c := confined{pid: uint32(p.PID), start: p.Start, program: [8]byte(sum[:]), caps: p.Caps, bounding: p.Bounding}
	for _, f := range []struct {
		set  bool
		flag uint8
	}{{p.Seccomp == 2, wasFiltered}, {p.NoNewPrivs, wasNoNewPrivs}, {p.UserNS, wasOtherUserNS}, {p.UID == 0, wasRoot}} {
		if f.set {
			c.flags |= f.flag
		}
	}
	return c
}

func (c confined) append(b []byte) []byte {
	b = slices.Grow(b, confinedSize)
	be := binary.BigEndian
	b = be.AppendUint64(be.AppendUint32(b, c.pid), c.start)
	b = append(b, c.program[:]...)
	return append(be.AppendUint64(be.AppendUint64(b, c.caps), c.bounding), c.flags)
}

func parseConfined(b []byte) map[uint32]confined {
	out := make(map[uint32]confined, len(b)/confinedSize)
	be := binary.BigEndian
	for ; len(b) >= confinedSize; b = b[confinedSize:] {
		c := confined{pid: be.Uint32(b), start: be.Uint64(b[4:]), program: [8]byte(b[12:20]), caps: be.Uint64(b[20:]), bounding: be.Uint64(b[28:]), flags: b[36]}
		out[c.pid] = c
	}
	return out
}
