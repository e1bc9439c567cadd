package deadline

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const (
	ceiling = 10 * time.Second
	gap     = 5 * time.Second
	window  = 5 * time.Minute
)

// costs are seconds of each op on an idle PC: as the lab's PC has them.
var costs = map[string]float64{"boot": 0.02, "procs": 0.15, "pmem": 0.12, "modules": 0.01, "net": 0.005, "hw": 0.03, "ktext": 0.25, "block": 0.04}

// pc answers random programs; load says how much longer everything takes, spread
// the deviation of its logarithm, stall the chance that an answer waits for a
// disk or the scheduler on top, as a distribution with a heavy tail (Pareto,
// shape 1.5, from 0.2 s, cut at 8 s).
type pc struct {
	r                   *rand.Rand
	load, spread, stall float64
}

func (p *pc) answer() Answer {
	a := Answer{Ops: map[string]time.Duration{}}
	total := 0.0
	busy := p.load * math.Exp(p.spread*p.r.NormFloat64())
	for name, c := range costs {
		if p.r.IntN(4) == 0 && name != "ktext" {
			continue
		}
		s := c * busy * math.Exp(0.1*p.r.NormFloat64())
		a.Ops[name] = time.Duration(s * float64(time.Second))
		total += s
	}
	if p.r.Float64() < p.stall {
		s := min(0.2/math.Pow(p.r.Float64(), 1/1.5), 8)
		a.Ops["ktext"] += time.Duration(s * float64(time.Second))
		total += s
	}
	total += 0.01 * busy
	a.Took = time.Duration(total * float64(time.Second))
	return a
}

// run gives n answers to model and watch and counts meanings. Answers over the
// ceiling are not ours.
func run(m *Model, w *Watch, now *time.Time, p *pc, n int) (count map[Meaning]int, firstRepeated int) {
	count, firstRepeated = map[Meaning]int{}, -1
	for i := range n {
		a := p.answer()
		*now = now.Add(gap)
		if a.Took > ceiling {
			continue
		}
		x := w.See(*now, a.Took, m.Limit(a.Ops, ceiling))
		count[x]++
		if x == Repeated && firstRepeated < 0 {
			firstRepeated = i
		}
		m.Learn(a, ceiling)
	}
	return count, firstRepeated
}

func learned(r *rand.Rand) (*Model, *Watch, time.Time) {
	m, w, now := &Model{}, &Watch{Window: window}, time.Unix(0, 0)
	run(m, w, &now, &pc{r: r, load: 1, spread: 0.1}, 2*Enough)
	return m, w, now
}

func TestCeilingHoldsUntilEnoughIsLearned(t *testing.T) {
	p := &pc{r: rand.New(rand.NewPCG(1, 1)), load: 1, spread: 0.1}
	m := &Model{}
	for i := range Enough {
		a := p.answer()
		if l := m.Limit(a.Ops, ceiling); l != ceiling {
			t.Fatalf("after %d answers the limit is %v", i, l)
		}
		m.Learn(a, ceiling)
	}
	a := p.answer()
	if l := m.Limit(a.Ops, ceiling); l >= ceiling || l < a.Took {
		t.Errorf("after %d answers the limit is %v for one that takes %v", Enough, l, a.Took)
	}
	a.Ops["new"] = time.Millisecond
	if l := m.Limit(a.Ops, ceiling); l != ceiling {
		t.Errorf("with an op that nobody knows: %v", l)
	}
}

// A program of few ops is expected sooner than one of all.
func TestLimitFollowsTheOps(t *testing.T) {
	m, _, _ := learned(rand.New(rand.NewPCG(1, 2)))
	few := m.Limit(map[string]time.Duration{"net": 0, "boot": 0}, ceiling)
	all := map[string]time.Duration{}
	for n := range costs {
		all[n] = 0
	}
	if many := m.Limit(all, ceiling); few >= many {
		t.Errorf("%v for two ops, %v for all", few, many)
	}
}

// honest are the loads of a PC at work.
var honest = []struct {
	name string
	pc   pc
}{
	{"idle", pc{load: 1, spread: 0.1}},
	{"docker runs", pc{load: 1.5, spread: 0.5, stall: 0.05}},
	{"all CPUs busy", pc{load: 3, spread: 0.3}},
	{"disk busy", pc{load: 1.3, spread: 0.3, stall: 0.3}},
	{"everything at once", pc{load: 4, spread: 0.5, stall: 0.2}},
}

// An honest PC that goes from idle to any load and back, for hours, is never a
// suspect for its slowness.
func TestHonestLoad_NoSuspect(t *testing.T) {
	for _, h := range honest {
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 7))
			m, w, now := learned(r)
			p := h.pc
			p.r = r
			for range 3 {
				if c, _ := run(m, w, &now, &p, 720); c[Repeated] > 0 {
					t.Errorf("%s, seed %d: a suspect %d times: %v", h.name, seed, c[Repeated], c)
				}
				run(m, w, &now, &pc{r: r, load: 1, spread: 0.1}, 200)
			}
		}
	}
}

// A PC that is slowed down for good is told and becomes a suspect, not more
// often than once in a window.
func TestAttack_SlowedDownForGood(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 9))
		m, w, now := learned(r)
		c, first := run(m, w, &now, &pc{r: r, load: 14, spread: 0.1}, 200)
		if first < 0 || first > 4*Row {
			t.Errorf("seed %d: a suspect after %d answers: %v", seed, first, c)
		}
		if most := 1 + 200*int(gap/time.Second)/int(window/time.Second); c[Repeated] > most || c[Slow] > most {
			t.Errorf("seed %d: %v, at most %d of each", seed, c, most)
		}
	}
}

// Slowing down little by little does not teach the model to wait for ever.
func TestAttack_SlowRampIsBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	m, w, now := learned(r)
	all := map[string]time.Duration{}
	for n := range costs {
		all[n] = 0
	}
	before, _ := m.expected(all)
	for load := 1.0; load < 60; load *= 1.01 {
		run(m, w, &now, &pc{r: r, load: load}, 10)
	}
	after, _ := m.expected(all)
	if after > 2*before {
		t.Errorf("the ops' costs grew from %.2f s to %.2f s", before, after)
	}
}

func TestModel_SurvivesEncoding(t *testing.T) {
	m, _, _ := learned(rand.New(rand.NewPCG(5, 5)))
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(b)
	if err != nil || fmt.Sprint(*again) != fmt.Sprint(*m) {
		t.Errorf("%v, %v", again, err)
	}
}

func TestLearn_NonsenseTeachesNothing(t *testing.T) {
	m := &Model{}
	m.Learn(Answer{}, ceiling)
	m.Learn(Answer{Took: -1, Ops: map[string]time.Duration{"a": 1}}, ceiling)
	if m.Count != 0 {
		t.Errorf("%+v", m)
	}
	// An op that says it ran longer than the answer took counts no more than that.
	m.Learn(Answer{Took: time.Second, Ops: map[string]time.Duration{"a": time.Hour, "b": -time.Hour}}, ceiling)
	if m.Ops["a"].Mean > 1 || m.Ops["b"].Mean < 0 {
		t.Errorf("%+v", m)
	}
}

func FuzzDecode(f *testing.F) {
	m, _, _ := learned(rand.New(rand.NewPCG(6, 6)))
	b, _ := m.Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		ops := map[string]time.Duration{"ktext": time.Second}
		if l := m.Limit(ops, ceiling); l > ceiling || l < 0 {
			t.Fatalf("limit %v", l)
		}
		m.Learn(Answer{Ops: ops, Took: 2 * time.Second}, ceiling)
		if l := m.Limit(ops, ceiling); l > ceiling || l < 0 {
			t.Fatalf("limit %v after learning", l)
		}
	})
}
