package expect

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

// Ima is the twin of probe.Ima: every file that ran must be the image's, or a
// program of a container image that the configuration approves, which is noted.
type Ima struct {
	user
	tasks
	running func() time.Duration // this process's monotonic clock
}

// Name implements protocol.Expectation.
func (*Ima) Name() string { return protocol.OpIma }

// Params implements protocol.Expectation.
func (e *Ima) Params(_ io.Reader, st *protocol.ImageState) ([]byte, error) {
	return protocol.EncodeOp(protocol.ImaParams{From: readImaNote(st).Count})
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
	at := readImaNote(in.State)
	if d.From != at.Count || d.HeadFrom != at.text() {
		j.fatal(ReasonImaChain, "the first %d measurements are not those that were told before", at.Count)
		return j.list
	}
	if d.Total < 2 {
		j.fatal(ReasonImaOff, "the kernel measures nothing")
		return j.list
	}
	proof := readProven(in.State)
	for i, m := range d.Entries {
		if at = at.next(m); proof.contradicts(at) {
			j.fatal(ReasonImaProof, "the first %d measurements are not those of register 10", at.Count)
			return j.list
		}
		if d.From == 0 && i == 0 && m.Path == bootAggregate {
			continue
		}
		if err := e.entry(j, m); err != nil {
			j.unjudged(err)
			return j.list
		}
	}
	if at.text() != d.Head {
		j.fatal(ReasonImaChain, "the measurements do not lead to the head that came with them")
		return j.list
	}
	switch held := len(d.Entries) == 0 && d.Total > at.Count; {
	case d.Total < proof.upTo, at.Count < proof.upTo && !held && len(d.Entries) < protocol.MaxMeasurements:
		j.fatal(ReasonImaProof, "%d measurements of %d, the chip has proven %d", at.Count, d.Total, proof.upTo)
		return j.list
	case held && e.heldFor(in.State) > maxHeld:
		j.fatal(ReasonImaHeld, "%d measurements are held back for more than %v", d.Total-at.Count, maxHeld)
		return j.list
	case !held:
		delete(in.State.Notes, noteHeld)
	}
	if d.Violations > 0 && d.From == 0 {
		j.add(protocol.Info, ReasonImaViolation, "%d files were written while they were measured", d.Violations)
	}
	at.write(in.State)
	return j.list
}

// An agent that reads the images of containers holds its entries back until it knows
// them, for ten minutes at most (package probe).
const maxHeld = 11 * time.Minute

// noteHeld is since when they are, of e.running.
const noteHeld = protocol.OpIma + "-held"

var began = time.Now()

// running is what has passed since then: the wall clock of a Pi without a battery jumps.
func running() time.Duration { return time.Since(began) }

func (e *Ima) heldFor(st *protocol.ImageState) time.Duration {
	now := e.running()
	if n := st.Notes[noteHeld]; len(n) == 8 {
		if since := time.Duration(binary.BigEndian.Uint64(n)); since <= now {
			return now - since
		}
	}
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	st.Notes[noteHeld] = binary.BigEndian.AppendUint64(nil, uint64(now))
	return 0
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
