package expect

import (
	"encoding/binary"
	"encoding/hex"
	"io"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
)

// Ima is the twin of probe.Ima: every file that ran must be the image's, or a
// program of a container image that the configuration approves, which is noted.
type Ima struct {
	user
	tasks
}

// Name implements protocol.Expectation.
func (*Ima) Name() string { return protocol.OpIma }

// Params implements protocol.Expectation.
func (e *Ima) Params(_ io.Reader, st *protocol.ImageState) ([]byte, error) {
	from, _, _ := e.noted(st)
	return protocol.EncodeOp(protocol.ImaParams{From: from})
}

// noted returns what has been read of this boot.
func (e *Ima) noted(st *protocol.ImageState) (count uint64, head string, ok bool) {
	n := st.Notes[e.Name()]
	if len(n) != 8+32 {
		return 0, "", false
	}
	return binary.BigEndian.Uint64(n), hex.EncodeToString(n[8:]), true
}

// bootAggregate is the kernel's first entry: what a TPM has of the boot, zeros
// without one.
const bootAggregate = "boot_aggregate"

// Judge implements protocol.Expectation.
func (e *Ima) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.ImaData
	if !j.read(in, &d) {
		return j.list
	}
	count, head, known := e.noted(in.State)
	if !known {
		head = hex.EncodeToString(protocol.ImaStart[:])
	}
	if d.From != count || d.HeadFrom != head {
		j.fatal(ReasonImaChain, "the first %d measurements are not those that were told before", count)
		return j.list
	}
	if d.Total < 2 {
		j.fatal(ReasonImaOff, "the kernel measures nothing")
		return j.list
	}
	raw, _ := hex.DecodeString(d.HeadFrom) // Check has seen it
	next := [32]byte(raw)
	for i, m := range d.Entries {
		next = protocol.ImaNext(next, m)
		if d.From == 0 && i == 0 && m.Path == bootAggregate {
			continue
		}
		if err := e.entry(j, m); err != nil {
			j.unjudged(err)
			return j.list
		}
	}
	if hex.EncodeToString(next[:]) != d.Head {
		j.fatal(ReasonImaChain, "the measurements do not lead to the head that came with them")
		return j.list
	}
	if d.Violations > 0 && d.From == 0 {
		j.add(protocol.Info, ReasonImaViolation, "%d files were written while they were measured", d.Violations)
	}
	if in.State.Notes == nil {
		in.State.Notes = map[string][]byte{}
	}
	in.State.Notes[e.Name()] = append(binary.BigEndian.AppendUint64(nil, d.From+uint64(len(d.Entries))), next[:]...)
	return j.list
}

// entry judges one file that ran. hpc-init starts the agent while the root still
// lies elsewhere: the kernel has its bare name or a path below /sysroot.
func (e *Ima) entry(j *judge, m protocol.Measurement) error {
	path := strings.TrimPrefix(m.Path, "/sysroot")
	if path == "hpc-agent" {
		path = agentPath
	}
	want, found, err := e.sum(e.image, path)
	if err != nil {
		return err
	}
	if found && want == m.Digest {
		return nil
	}
	if runtime, err := e.ofRuntime(e.image, path, m.Digest); err != nil || runtime {
		return err
	}
	if i := slices.IndexFunc(m.Images, func(image string) bool { return slices.Contains(e.approved, image) }); i >= 0 {
		j.add(protocol.Info, ReasonImaTask, "%s of the approved image %.12s was executed or loaded", m.Path, m.Images[i])
		return nil
	}
	reason := ReasonImaUnknown
	if found {
		reason = ReasonImaChanged
	}
	j.fatal(reason, "%s with digest %.16s was executed or loaded", m.Path, m.Digest)
	return nil
}
