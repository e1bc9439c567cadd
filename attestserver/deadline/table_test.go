package deadline

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

// TestTable prints the table of docs/formats.md (with -v): an hour of each PC,
// after its model was learned on an idle one, 20 times.
func TestTable(t *testing.T) {
	const runs, answers = 20, int(time.Hour / gap)
	attacks := []struct {
		name  string
		pc    pc
		relay time.Duration // on top of each answer
	}{
		{"slowed down 3 times", pc{load: 3, spread: 0.1}, 0},
		{"slowed down 6 times", pc{load: 6, spread: 0.1}, 0},
		{"slowed down 14 times", pc{load: 14, spread: 0.1}, 0},
		{"relayed, 0.2 s", pc{load: 1, spread: 0.1}, 200 * time.Millisecond},
		{"relayed, 2 s", pc{load: 1, spread: 0.1}, 2 * time.Second},
		{"relayed, 5 s", pc{load: 1, spread: 0.1}, 5 * time.Second},
	}
	row := func(name string, p pc, relay time.Duration) (suspects int) {
		slow, first := 0, 0
		for seed := range uint64(runs) {
			r := rand.New(rand.NewPCG(seed, 11))
			m, w, now := learned(r)
			p.r = r
			began := -1
			for i := range answers {
				a := p.answer()
				a.Took += relay
				now = now.Add(gap)
				if a.Took > ceiling {
					continue
				}
				x := w.See(now, a.Took, m.Limit(a.Ops, ceiling))
				if x != InTime {
					slow++
				}
				if x == Repeated {
					suspects++
					if began < 0 {
						began = i + 1
					}
				}
				m.Learn(a, ceiling)
			}
			first += began
		}
		mean := "–"
		if suspects >= runs {
			mean = strconv.Itoa(first / runs)
		}
		t.Logf("| %s | %.2f %% | %.1f | %s |", name, 100*float64(slow)/float64(runs*answers), float64(suspects)/runs, mean)
		return suspects
	}
	for _, h := range honest {
		if n := row(h.name, h.pc, 0); n > 0 {
			t.Errorf("%s: %d suspects", h.name, n)
		}
	}
	for _, a := range attacks {
		row(a.name, a.pc, a.relay)
	}
}
