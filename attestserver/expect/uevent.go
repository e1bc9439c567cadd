package expect

import (
	"encoding/binary"
	"encoding/hex"
	"io"

	"portcullis/attestserver/protocol"
)

// Uevent is the twin of probe.Uevent. It remembers how many events of this boot
// it has read and the chain's head after them; what follows must continue there.
type Uevent struct{ user }

// Name implements protocol.Expectation.
func (*Uevent) Name() string { return protocol.OpUevent }

// Params implements protocol.Expectation.
func (e *Uevent) Params(_ io.Reader, st *protocol.ImageState) ([]byte, error) {
	from, _, _ := e.noted(st)
	return protocol.EncodeOp(protocol.UeventParams{From: from})
}

// noted returns what has been read of this boot; ok is false before the first answer.
func (e *Uevent) noted(st *protocol.ImageState) (count uint64, head string, ok bool) {
	n := st.Notes[e.Name()]
	if len(n) != 8+32 {
		return 0, "", false
	}
	return binary.BigEndian.Uint64(n), hex.EncodeToString(n[8:]), true
}

// Judge implements protocol.Expectation.
func (e *Uevent) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.UeventData
	if !j.read(in, &d) {
		return j.list
	}
	count, head, known := e.noted(in.State)
	switch {
	case known && d.First > count:
		j.add(protocol.Soft, ReasonUeventLost, "events %d to %d were forgotten before they were asked for", count, d.First)
	case known && (d.First != count || d.HeadFrom != head):
		j.fatal(ReasonUeventChain, "the first %d events are not those that were told before", d.First)
		return j.list
	case !known && d.First == 0 && d.HeadFrom != hex.EncodeToString(protocol.UeventStart[:]):
		j.fatal(ReasonUeventChain, "the chain does not start at its start")
		return j.list
	}
	if d.Lost > 0 {
		j.add(protocol.Info, ReasonUeventLost, "the kernel dropped events %d times since the agent started", d.Lost)
	}
	raw, _ := hex.DecodeString(d.HeadFrom) // Check has seen it
	next := [32]byte(raw)
	for _, v := range d.Events {
		next = protocol.UeventNext(next, v)
		if v.Hardware() && v.At >= settle.Milliseconds() {
			j.fatal(ueventReason(v), "%s of %s at %d ms after power-on", v.Subsystem, v.Path, v.At)
		}
	}
	if hex.EncodeToString(next[:]) != d.Head {
		j.fatal(ReasonUeventChain, "the events do not lead to the head that came with them")
		return j.list
	}
	if in.State.Notes == nil {
		in.State.Notes = map[string][]byte{}
	}
	in.State.Notes[e.Name()] = append(binary.BigEndian.AppendUint64(nil, d.First+uint64(len(d.Events))), next[:]...)
	return j.list
}

func ueventReason(e protocol.Uevent) string {
	if e.Action == "remove" {
		return ReasonUeventRemoved
	}
	return ReasonUeventAdded
}
