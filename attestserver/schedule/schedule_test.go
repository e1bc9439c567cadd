package schedule

import (
	"bytes"
	"crypto/rand"
	"errors"
	"math"
	"testing"
	"testing/iotest"
	"time"
)

const samples = 40_000

func draw(t *testing.T, p Plan) []time.Duration {
	t.Helper()
	gaps := make([]time.Duration, samples)
	for i := range gaps {
		g, err := p.Gap(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		gaps[i] = g
	}
	return gaps
}

func plan(t *testing.T, mean, min time.Duration) Plan {
	t.Helper()
	p, err := NewPlan(mean, min)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The bounds of the statistical tests are six standard errors: a sound source
// fails one of them about once in 10^8 runs.
func TestGapsAreExponentialWithinTheirBounds(t *testing.T) {
	for _, p := range []Plan{plan(t, 5*time.Second, 200*time.Millisecond), plan(t, time.Second, 500*time.Millisecond), plan(t, time.Second, time.Nanosecond)} {
		gaps := draw(t, p)
		var sum float64
		beyond := 0 // of one mean: e^-1 of them
		for _, g := range gaps {
			if g < p.Min() || g > p.Cap() {
				t.Fatalf("gap %v outside of %v to %v", g, p.Min(), p.Cap())
			}
			sum += float64(g)
			if g > p.mean {
				beyond++
			}
		}
		mean := sum / samples
		if tolerance := 6 * float64(p.mean) / math.Sqrt(samples); math.Abs(mean-float64(p.Expected())) > tolerance {
			t.Errorf("mean %v, expected %v", time.Duration(mean), p.Expected())
		}
		share := float64(beyond) / samples
		if math.Abs(share-math.Exp(-1)) > 6*math.Sqrt(0.25/samples) {
			t.Errorf("%.3f of the gaps are above the mean, expected %.3f", share, math.Exp(-1))
		}
	}
}

// Who has seen all gaps so far knows nothing of the next one.
func TestGapsAreIndependent(t *testing.T) {
	gaps := draw(t, plan(t, time.Second, time.Millisecond))
	var mean float64
	for _, g := range gaps {
		mean += float64(g) / samples
	}
	for lag := 1; lag <= 5; lag++ {
		var with, all float64
		for i := range gaps {
			d := float64(gaps[i]) - mean
			all += d * d
			if i >= lag {
				with += d * (float64(gaps[i-lag]) - mean)
			}
		}
		if r := with / all; math.Abs(r) > 6/math.Sqrt(samples) {
			t.Errorf("gaps %d apart correlate by %.3f", lag, r)
		}
	}
}

// Having waited makes the next challenge no likelier and no less likely.
func TestGapsAreMemoryless(t *testing.T) {
	gaps := draw(t, plan(t, time.Second, time.Nanosecond))
	var over, overTwice float64
	for _, g := range gaps {
		if g > time.Second {
			over++
		}
		if g > 2*time.Second {
			overTwice++
		}
	}
	first, second := over/samples, overTwice/over
	if math.Abs(first-second) > 6*math.Sqrt(0.25/over) {
		t.Errorf("P(>1s) %.3f, P(>2s | >1s) %.3f", first, second)
	}
}

func TestBurstFitsInItsSpan(t *testing.T) {
	for range 1000 {
		var sum time.Duration
		for range BurstSize {
			g, err := Burst(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			sum += g
		}
		if sum > BurstSpan {
			t.Fatalf("a burst of %v", sum)
		}
	}
}

// Jitter is spread evenly over half of what it is drawn around, and nothing lies outside.
func TestJitterIsSpreadEvenly(t *testing.T) {
	const d, samples = 10 * time.Minute, 20000
	var quarters [4]int
	for range samples {
		j, err := Jitter(rand.Reader, d)
		if err != nil {
			t.Fatal(err)
		}
		q := int(4 * (j - 3*d/4) / (d / 2))
		if j < 3*d/4 || j > 5*d/4 {
			t.Fatalf("%v around %v", j, d)
		}
		quarters[min(q, 3)]++
	}
	for i, n := range quarters {
		if p := float64(n) / samples; math.Abs(p-0.25) > 6*math.Sqrt(0.25*0.75/samples) {
			t.Errorf("quarter %d has %.3f of all", i, p)
		}
	}
	broken := errors.New("no entropy")
	if _, err := Jitter(iotest.ErrReader(broken), d); !errors.Is(err, broken) {
		t.Errorf("broken source: %v", err)
	}
}

func TestExtremesOfTheSource(t *testing.T) {
	p := plan(t, time.Second, 100*time.Millisecond)
	if g, err := p.Gap(bytes.NewReader(make([]byte, 8))); err != nil || g != p.Cap() {
		t.Errorf("all zeros: %v, %v, want the cap", g, err)
	}
	if g, err := p.Gap(bytes.NewReader(bytes.Repeat([]byte{0xff}, 8))); err != nil || g != p.Min() {
		t.Errorf("all ones: %v, %v, want the floor", g, err)
	}
	broken := errors.New("no entropy")
	if _, err := p.Gap(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("broken source: %v", err)
	}
	if _, err := Burst(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("broken source: %v", err)
	}
}

func TestNewPlanRefuses(t *testing.T) {
	for _, c := range [][2]time.Duration{{0, 0}, {time.Second, 0}, {time.Second, -1}, {time.Second, 2 * time.Second}, {-1, -1}} {
		if _, err := NewPlan(c[0], c[1]); !errors.Is(err, ErrPlan) {
			t.Errorf("mean %v, min %v: %v", c[0], c[1], err)
		}
	}
}
