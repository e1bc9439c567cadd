package expect

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

// Hw is the twin of probe.Hw. Its reference is taken of one machine (by its
// MAC) with one image: kernels name parts differently. Any difference is fatal
// until the operator removes the reference: nothing is learned silently.
type Hw struct{ user }

// kindHw is the sort of reference.
const kindHw = "hw"

// settle is how long after power-on a machine may still be finding its parts:
// disks, USB devices and network cards appear when user space loads their
// drivers, and the first question comes earlier.
const settle = 180 * time.Second

// late are the classes that it may find late.
var late = map[string]bool{protocol.HwUSB: true, protocol.HwBlock: true, protocol.HwNIC: true}

// memoryTolerance: firmware and kernel reserve a little more or less at each
// boot; a DIMM is more than a 32nd of the memory.
const memoryTolerance = 32

type hwReference struct {
	Session    string               `json:"session"` // the boot session that enrolled it
	MemoryKiB  uint64               `json:"memory_kib"`
	Components []protocol.Component `json:"components"`
}

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
	_, err := readHw(refs, st)
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
	if err := writeHw(in.Refs, in.State, hwReference{in.State.Session, d.MemoryKiB, d.Components}); err != nil {
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
	ref, err := readHw(in.Refs, in.State)
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	young := time.Duration(d.UptimeMs)*time.Millisecond < settle
	learned := ref.compare(j, &d, young, young && ref.Session == in.State.Session)
	if len(learned) > 0 && !slices.ContainsFunc(j.list, func(f protocol.Finding) bool { return f.Class != protocol.Info }) {
		ref.Components = append(ref.Components, learned...)
		if err := writeHw(in.Refs, in.State, *ref); err != nil {
			j.unjudged(err)
		}
	}
	return j.list
}

// compare names every difference. young: parts of the late classes may still be
// missing. learning: this is the boot that enrolled, and they may still be added.
func (r *hwReference) compare(j *judge, d *protocol.HwData, young, learning bool) (learned []protocol.Component) {
	old := map[string]protocol.Component{}
	for _, c := range r.Components {
		old[c.Class+"\x00"+c.Slot] = c
	}
	for _, c := range d.Components {
		k := c.Class + "\x00" + c.Slot
		was, ok := old[k]
		delete(old, k)
		switch {
		case ok && was.Value == c.Value:
		case ok:
			j.fatal(ReasonHwChanged, "%s %s is %q, was %q", c.Class, c.Slot, c.Value, was.Value)
		case learning && late[c.Class]:
			j.add(protocol.Info, ReasonHwLearned, "%s %s: %s", c.Class, c.Slot, c.Value)
			learned = append(learned, c)
		default:
			j.fatal(ReasonHwAdded, "%s %s: %s", c.Class, c.Slot, c.Value)
		}
	}
	gone := make([]protocol.Component, 0, len(old))
	for _, c := range old {
		gone = append(gone, c)
	}
	slices.SortFunc(gone, func(a, b protocol.Component) int {
		return cmp.Or(strings.Compare(a.Class, b.Class), strings.Compare(a.Slot, b.Slot))
	})
	for _, c := range gone {
		if !young || !late[c.Class] {
			j.fatal(ReasonHwRemoved, "%s %s: %s", c.Class, c.Slot, c.Value)
		}
	}
	if diff := max(d.MemoryKiB, r.MemoryKiB) - min(d.MemoryKiB, r.MemoryKiB); diff > r.MemoryKiB/memoryTolerance {
		j.fatal(ReasonHwMemory, "%d KiB of memory, was %d KiB", d.MemoryKiB, r.MemoryKiB)
	}
	return learned
}

// hwKey names the reference of one machine with one image.
func hwKey(st *protocol.ImageState) string {
	return hex.EncodeToString(st.Image.Digest[:16]) + "." + strings.ReplaceAll(st.MAC, ":", "-")
}

func readHw(refs protocol.References, st *protocol.ImageState) (*hwReference, error) {
	b, err := refs.Get(kindHw, hwKey(st))
	if err != nil {
		return nil, err
	}
	var r hwReference
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("hardware reference: %w", err)
	}
	return &r, nil
}

func writeHw(refs protocol.References, st *protocol.ImageState, r hwReference) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("hardware reference: %w", err)
	}
	return refs.Put(kindHw, hwKey(st), b)
}
