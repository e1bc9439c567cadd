// Package deadline learns how long the answers of one image on one CPU class
// take, and says when one took longer than it should have. It is pure: times come
// in as values. attestserver/server asks it about answers that came within the
// hard ceiling; it decides about no other.
//
// Timing is an anomaly signal and never a proof (Castelluccia et al., CCS 2009;
// Gligor and Woo, NDSS 2019), so lateness of this kind makes a suspect at most.
package deadline

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Numbers of the model.
const (
	// Enough answers make a model; each of the ops in question must have been in
	// EnoughOps of them.
	Enough    = 64
	EnoughOps = 8

	// p999 is the 99.9th percentile of the normal distribution, in deviations.
	p999 = 3.09
	// Weights of the newest answer: what an op costs changes slowly, how busy the
	// machine is changes quickly.
	opWeight, loadWeight, spreadWeight = 1.0 / 64, 1.0 / 8, 1.0 / 32
	// The limit is never below this factor and this time on top: schedulers and
	// disks make single answers wait.
	leastFactor = 3
	leastSlack  = time.Second
	// A busy machine moves the limit by no more than this factor, and what an
	// answer costs on the whole is settled by the first Enough: nobody teaches us
	// to wait for ever by slowing down little by little.
	mostLoad = 2.5
	// leastSpread is the deviation of ln(took/expected) that is assumed at least.
	leastSpread = 0.1
	rtts        = 3 // round trips on top of everything
)

// MaxModel bounds an encoded model, in bytes; maxOps the ops in it.
const (
	MaxModel = 64 << 10
	maxOps   = 256
)

// Answer is what is learned from, and judged: a program of ops and its times.
type Answer struct {
	Ops  map[string]time.Duration // what each op took, by the PC's clock
	Took time.Duration            // from the question to the last byte, by ours
}

// Model is what was learned of one image on one CPU class. The zero value has
// learned nothing.
type Model struct {
	Schema int           `json:"schema"` // 1
	Count  int           `json:"count"`
	Ops    map[string]Op `json:"ops"`
	Rest   float64       `json:"rest"` // mean seconds beside the ops: transfer, waking up
	RTT    float64       `json:"rtt"`  // the smallest rest, seconds
	Load   float64       `json:"load"` // mean of ln(took/expected)
	Spread float64       `json:"spread"`
}

// Op is one op's cost.
type Op struct {
	Mean  float64 `json:"mean"` // seconds
	Count int     `json:"count"`
}

// expected is the mean time of a program; ok tells whether all of it is known.
func (m *Model) expected(ops map[string]time.Duration) (seconds float64, ok bool) {
	seconds, ok = m.Rest, m.Count >= Enough
	for name := range ops {
		o := m.Ops[name]
		seconds += o.Mean
		ok = ok && o.Count >= EnoughOps
	}
	return max(seconds, 1e-4), ok
}

// Limit is how long an answer with these ops may take; ceiling where too little
// has been learned, and never more.
func (m *Model) Limit(ops map[string]time.Duration, ceiling time.Duration) time.Duration {
	e, ok := m.expected(ops)
	if !ok {
		return ceiling
	}
	learned := e*math.Exp(m.Load+p999*m.spread()) + rtts*m.RTT
	least := e*leastFactor*math.Exp(max(m.Load, 0)) + leastSlack.Seconds()
	most := e*leastFactor*mostLoad + leastSlack.Seconds() + rtts*m.RTT
	return min(ceiling, time.Duration(min(max(learned, least), most)*float64(time.Second)))
}

func (m *Model) spread() float64 { return max(math.Sqrt(max(m.Spread, 0)), leastSpread) }

// Learn takes an answer that was accepted and found good. One beyond the limit
// teaches as if it had come at the limit.
func (m *Model) Learn(a Answer, ceiling time.Duration) {
	if a.Took <= 0 || len(a.Ops) == 0 || len(a.Ops) > maxOps {
		return
	}
	took, scale := a.Took.Seconds(), 1.0
	if limit := m.Limit(a.Ops, ceiling).Seconds(); took > limit {
		took, scale = limit, limit/took
	}
	if m.Ops == nil {
		m.Schema, m.Ops = 1, make(map[string]Op)
	}
	// Once learned, only the ops' shares of the whole are followed: how busy the
	// machine is must not count twice.
	e, known := m.expected(a.Ops)
	busy := 1.0
	if known {
		busy = took / e
	}
	rest := took
	for name, d := range a.Ops {
		seconds := min(max(d.Seconds(), 0)*scale, rest)
		rest -= seconds
		o := m.Ops[name]
		o.Mean += weight(o.Count, opWeight) * (seconds/busy - o.Mean)
		o.Count++
		m.Ops[name] = o
	}
	m.Rest += weight(m.Count, opWeight) * (rest/busy - m.Rest)
	if m.Count == 0 || m.Count < Enough && rest < m.RTT {
		m.RTT = rest
	}
	if m.Count >= Enough/2 { // before that the expectation itself is still moving
		r := math.Log(took / e)
		off := r - m.Load
		m.Load = min(max(m.Load+loadWeight*off, -math.Log(mostLoad)), math.Log(mostLoad))
		m.Spread += spreadWeight * (off*off - m.Spread)
	}
	m.Count++
}

// weight is that of a mean while there are few values, then w.
func weight(before int, w float64) float64 { return max(1/float64(before+1), w) }

// Encode writes a model.
func (m *Model) Encode() ([]byte, error) { return json.Marshal(m) }

// Decode reads a model; numbers that cannot have been learned are refused.
func Decode(b []byte) (*Model, error) {
	if len(b) > MaxModel {
		return nil, fmt.Errorf("deadline: a model of %d bytes, at most %d are read", len(b), MaxModel)
	}
	var m Model
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("deadline: %w", err)
	}
	good := m.Schema == 1 && m.Count >= 0 && len(m.Ops) <= maxOps && seconds(m.Rest) && seconds(m.RTT) &&
		math.Abs(m.Load) <= math.Log(mostLoad)+1e-9 && m.Spread >= 0 && m.Spread <= 100
	for _, name := range slices.Sorted(maps.Keys(m.Ops)) {
		good = good && seconds(m.Ops[name].Mean) && m.Ops[name].Count >= 0
	}
	if !good {
		return nil, fmt.Errorf("deadline: a model with numbers out of their range")
	}
	return &m, nil
}

// seconds are of no answer that was ever waited for when they are over an hour.
func seconds(v float64) bool { return v >= 0 && v <= 3600 }
