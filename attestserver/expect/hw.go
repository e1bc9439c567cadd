package expect

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"portcullis/attestserver/fingerprint"
	"portcullis/attestserver/protocol"
)

// Hw is the twin of probe.Hw. It holds the machine against its fingerprint, which
// is of one machine (by its MAC), whatever image it boots. What differs is fatal
// or for review; nothing is learned silently after the enrolling boots.
type Hw struct{ user }

// Name implements protocol.Expectation.
func (*Hw) Name() string { return protocol.OpHw }

// Params implements protocol.Expectation.
func (*Hw) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// EnrolParams implements protocol.Enroller.
func (*Hw) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// CPUClass implements protocol.Classifier.
func (*Hw) CPUClass(out protocol.Output) (string, error) {
	var d protocol.HwData
	if err := protocol.DecodeOp(out.Data, protocol.MaxData, &d); err != nil {
		return "", err
	}
	return d.CPUClass, nil
}

// Enrolled implements protocol.Enroller.
func (*Hw) Enrolled(st *protocol.ImageState, refs protocol.References) (bool, error) {
	_, err := fingerprint.Load(refs, st.MAC)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Enrol implements protocol.Enroller.
func (e *Hw) Enrol(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.HwData
	if !j.read(in, &d) {
		return j.list
	}
	if d.MemoryKiB == 0 || len(d.Components) == 0 {
		j.fatal(ReasonMalformed, "no memory or no components were listed")
		return j.list
	}
	if err := fingerprint.Enrol(in.Refs, observation(in.State, &d), rand.Reader); err != nil {
		j.unjudged(err)
	}
	return j.list
}

// Judge implements protocol.Expectation.
func (e *Hw) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.HwData
	if !j.read(in, &d) {
		return j.list
	}
	res, err := fingerprint.Observe(in.Refs, observation(in.State, &d))
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	for _, c := range res.Changes {
		if c.Level == fingerprint.Fatal {
			j.fatal(hwReason(c), "%s", describe(c))
		}
	}
	// What is for review is told once: the verdict warns as long as it waits.
	if told := in.State.Notes[e.Name()]; res.Waits != "" && string(told) != res.Waits {
		for _, c := range res.Changes {
			if c.Level == fingerprint.Review {
				j.add(protocol.Info, ReasonHwReview, "%s", describe(c))
			}
		}
		if in.State.Notes != nil {
			in.State.Notes[e.Name()] = []byte(res.Waits)
		}
	}
	for _, p := range res.Learned {
		j.add(protocol.Info, ReasonHwLearned, "%s: %s", p, p.Value)
	}
	for _, p := range res.Unstable {
		j.add(protocol.Info, ReasonHwUnstable, "%s: %s", p, p.Value)
	}
	return j.list
}

// maxNamed is how many parts a warning names.
const maxNamed = 3

// Warnings implements protocol.Warner.
func (e *Hw) Warnings(st *protocol.ImageState, refs protocol.References) (out []string) {
	r, err := fingerprint.Load(refs, st.MAC)
	if err != nil {
		return nil // the judgement has told
	}
	if !r.Complete() {
		out = append(out, fmt.Sprintf("fingerprint enrolled over %d of %d boots", len(r.Boots), fingerprint.EnrolBoots))
	}
	p, err := fingerprint.LoadPending(refs, st.MAC)
	if err != nil || p == nil {
		return out
	}
	text := "fingerprint drift waits for an operator: "
	for i, c := range p.Changes {
		if i == maxNamed {
			text += fmt.Sprintf(" and %d more", len(p.Changes)-i)
			break
		}
		if i > 0 {
			text += ", "
		}
		text += c.String() + " (" + c.Level.String() + ")"
	}
	return append(out, plain(text))
}

func observation(st *protocol.ImageState, d *protocol.HwData) fingerprint.Observation {
	return fingerprint.Observation{Machine: st.MAC, Session: st.Session, Image: hex.EncodeToString(st.Image.Digest[:]),
		Uptime: time.Duration(d.UptimeMs) * time.Millisecond, Parts: fingerprint.Parts(d)}
}

func hwReason(c fingerprint.Change) string {
	switch {
	case c.Class == fingerprint.ClassMemory:
		return ReasonHwMemory
	case c.Kind == fingerprint.Added:
		return ReasonHwAdded
	case c.Kind == fingerprint.Removed:
		return ReasonHwRemoved
	}
	return ReasonHwChanged
}

func describe(c fingerprint.Change) string {
	within := ""
	if c.Within {
		within = ", while the session ran"
	}
	if c.Class == fingerprint.ClassMemory {
		return fmt.Sprintf("%s KiB of memory, was %s KiB%s", c.Is, c.Was, within)
	}
	switch c.Kind {
	case fingerprint.Added:
		return fmt.Sprintf("%s %s: %s%s", c.Class, c.Slot, c.Is, within)
	case fingerprint.Removed:
		return fmt.Sprintf("%s %s: %s%s", c.Class, c.Slot, c.Was, within)
	}
	return fmt.Sprintf("%s %s is %q, was %q%s", c.Class, c.Slot, c.Is, c.Was, within)
}
