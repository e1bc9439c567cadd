package expect

import (
	"encoding/json"
	"io"
	"time"

	"portcullis/attestserver/protocol"
)

// Time is the twin of probe.Time. It compares the PC's clocks with those of the
// same boot before, and with the gateway's clock. The only finding that fails a
// challenge is a wall clock that was set: nothing in the image does that.
type Time struct {
	user
	now func() time.Time
}

// timeNote is what is remembered of a boot session.
type timeNote struct {
	Offset int64 `json:"offset"` // wall clock minus time since boot, ms
	RawNs  int64 `json:"raw"`    // at the first answer
	Ours   int64 `json:"ours"`   // the gateway's clock then, ns
	Best   int64 `json:"best"`   // shortest work, ns
	Total  uint64
	Steal  uint64
}

// Tolerances.
const (
	timeRounds   = 4096
	maxStep      = 1500 // ms between the wall clock and the time since boot
	driftSpan    = 10 * time.Minute
	driftPart    = 100 // a clock may go wrong by one part in driftPart
	driftSlack   = 5 * time.Second
	slowFactor   = 16 // work that takes this many times the shortest
	slowLeast    = 200 * time.Millisecond
	stealPart    = 4 // of the processor time, taken by a hypervisor
	stealTicks   = 1000
	maxTimeNotes = 4096
)

// Name implements protocol.Expectation.
func (*Time) Name() string { return protocol.OpTime }

// Params implements protocol.Expectation.
func (*Time) Params(io.Reader, *protocol.ImageState) ([]byte, error) {
	return protocol.EncodeOp(protocol.TimeParams{Rounds: timeRounds})
}

// Judge implements protocol.Expectation.
func (e *Time) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	work := in.Key.TimeWork(timeRounds)
	if !protocol.SameDigest(in.Output.Digest, in.Key.Digest(e.Name(), in.Params, append(work[:], in.Output.Data...))) {
		j.fatal(ReasonDigest, "the digest is not of this answer and this work")
		return j.list
	}
	var d protocol.TimeData
	if !j.decode(in, &d, protocol.MaxData) {
		return j.list
	}
	if in.State.Notes == nil {
		in.State.Notes = map[string][]byte{}
	}
	var n timeNote
	ours := e.now().UnixNano()
	offset := d.WallMs - d.BootMs
	if old := in.State.Notes[e.Name()]; old == nil || json.Unmarshal(old, &n) != nil {
		n = timeNote{Offset: offset, RawNs: d.RawNs, Ours: ours, Best: d.WorkNs, Total: d.TotalJiff, Steal: d.StealJiff}
	}
	step := offset - n.Offset
	switch {
	case step <= maxStep && step >= -maxStep:
	case d.BootMs < settle.Milliseconds():
		n.Offset = offset // systemd corrects a clock that is behind its own release
	default:
		j.add(protocol.Soft, ReasonClockSet, "the wall clock was set by %v", time.Duration(step)*time.Millisecond)
		n.Offset = offset // told once
	}
	e.hints(j, &n, &d, ours)
	n.Best = min(n.Best, d.WorkNs)
	n.Total, n.Steal = d.TotalJiff, d.StealJiff
	if b, err := json.Marshal(n); err == nil && len(b) < maxTimeNotes {
		in.State.Notes[e.Name()] = b
	}
	return j.list
}

// hints are what is odd and proves nothing.
func (e *Time) hints(j *judge, n *timeNote, d *protocol.TimeData, ours int64) {
	theirs, here := time.Duration(d.RawNs-n.RawNs), time.Duration(ours-n.Ours)
	if off := (theirs - here).Abs(); here >= driftSpan && off > here/driftPart+driftSlack {
		j.add(protocol.Info, ReasonClockDrift, "its clock went %v while ours went %v, source %s", theirs, here, d.Source)
	}
	if work := time.Duration(d.WorkNs); work > slowLeast && work > slowFactor*time.Duration(n.Best) {
		j.add(protocol.Info, ReasonSlow, "the work took %v, once %v; %d MHz", work, time.Duration(n.Best), d.MHz)
	}
	total, steal := d.TotalJiff-min(d.TotalJiff, n.Total), d.StealJiff-min(d.StealJiff, n.Steal)
	if total > stealTicks && steal > total/stealPart {
		j.add(protocol.Info, ReasonSteal, "a hypervisor took %d of %d clock ticks", steal, total)
	}
}
