package server

import (
	"testing"
	"time"
)

// Pauses differ, are no longer or shorter than an eighth, and are right on average.
func TestApart(t *testing.T) {
	const n = 10_000
	var sum, least, most time.Duration = 0, time.Hour, 0
	for range n {
		d := apart(wireIdle)
		sum, least, most = sum+d, min(least, d), max(most, d)
	}
	if least < wireIdle-wireIdle/8 || most > wireIdle+wireIdle/8 || most-least < wireIdle/8 {
		t.Errorf("from %v to %v", least, most)
	}
	if mean := sum / n; mean < wireIdle-wireIdle/50 || mean > wireIdle+wireIdle/50 {
		t.Errorf("%v on average", mean)
	}
}
