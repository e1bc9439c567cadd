// Command detect compares how a fault is found that lasts for a while and is
// undone: by our schedule, and by a fixed timer of the same mean, which is what
// other verifiers have. It draws from the schedule's own code, with the system's
// random source; only time is not waited for. See README.md.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"

	"portcullis/attestserver/schedule"
	"portcullis/bench/internal/bench"
)

const (
	mean = 5 * time.Second
	min  = 200 * time.Millisecond
)

// lasting are the faults of the comparison.
var lasting = []time.Duration{time.Second, 5 * time.Second, 15 * time.Second, 60 * time.Second}

func main() {
	bench.Main(bench.Spec{Name: "detect", Runs: 100000, Usage: "faults of each kind", Run: run})
}

// row is one kind of fault against one kind of verifier. Seconds count from the
// beginning of the fault to the challenge that finds it, of those that are found.
type row struct {
	Lasts     float64 `json:"lasts_seconds"`
	Attacker  string  `json:"attacker"`
	Ours      outcome `json:"ours"`
	Fixed     outcome `json:"fixed_timer"`
	FixedMean float64 `json:"fixed_interval_seconds"`
}

type outcome struct {
	Missed float64 `json:"missed"` // share, 0 to 1
	Median float64 `json:"median_seconds"`
}

type report []row

func run(_ context.Context, n int) (bench.Report, error) {
	plan, err := schedule.NewPlan(mean, min)
	if err != nil {
		return nil, err
	}
	fixed := plan.Expected() // as many challenges as we ask, no more and no fewer
	var r report
	for _, d := range lasting {
		for _, after := range []bool{false, true} {
			who := "begins at any moment"
			if after {
				who = "begins right after a challenge, which it sees"
			}
			ours, err := measure(n, d, func() (time.Duration, error) { return ourNext(plan, after) })
			if err != nil {
				return nil, err
			}
			timer, err := measure(n, d, func() (time.Duration, error) { return fixedNext(fixed, after) })
			if err != nil {
				return nil, err
			}
			r = append(r, row{d.Seconds(), who, ours, timer, fixed.Seconds()})
		}
	}
	return r, nil
}

// ourNext is the time from the beginning of a fault to our next challenge.
func ourNext(p schedule.Plan, after bool) (time.Duration, error) {
	if after {
		return p.Gap(rand.Reader)
	}
	// A moment falls into a gap with a chance that grows with its length: draw
	// gaps and accept each in proportion, then a place within it.
	for {
		gap, err := p.Gap(rand.Reader)
		if err != nil {
			return 0, err
		}
		u, err := uniform()
		if err != nil {
			return 0, err
		}
		if u*float64(p.Cap()) > float64(gap) {
			continue
		}
		at, err := uniform()
		return time.Duration(at * float64(gap)), err
	}
}

func fixedNext(interval time.Duration, after bool) (time.Duration, error) {
	if after {
		return interval, nil
	}
	u, err := uniform()
	return time.Duration(u * float64(interval)), err
}

func measure(n int, d time.Duration, next func() (time.Duration, error)) (o outcome, err error) {
	var found []float64
	for range n {
		t, err := next()
		if err != nil {
			return o, err
		}
		if t < d {
			found = append(found, t.Seconds())
		}
	}
	return outcome{1 - float64(len(found))/float64(n), bench.Median(found)}, nil
}

func uniform() (float64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, err
	}
	return float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53), nil
}

func (r report) Print(w io.Writer) {
	fmt.Fprintf(w, "our gaps: exponential, mean %v, from %v to %v; the fixed timer: every %.2f s\n\n", mean, min, schedule.CapFactor*mean, r[0].FixedMean)
	fmt.Fprintf(w, "%-6s %-46s %18s %18s\n", "lasts", "the fault", "missed: ours", "fixed timer")
	for _, x := range r {
		fmt.Fprintf(w, "%4.0f s %-46s %16.3f %% %16.3f %%   found after %.2f s, %.2f s (median)\n",
			x.Lasts, x.Attacker, 100*x.Ours.Missed, 100*x.Fixed.Missed, x.Ours.Median, x.Fixed.Median)
	}
	worst := 0.0
	for _, x := range r {
		worst = math.Max(worst, x.Fixed.Missed-x.Ours.Missed)
	}
	fmt.Fprintf(w, "\nlargest gain: %.1f percentage points\n", 100*worst)
}
