package server

import (
	"slices"
	"testing"

	"portcullis/attestserver/verdict"
	"portcullis/internal/clock"
)

// What there is to say of the Pi stands in front of every verdict's own warnings.
func TestWarningsOfThePiStandBesideEveryVerdict(t *testing.T) {
	o := &Options{Warnings: []string{"of the Pi"}, Clock: clock.Real{}}
	s := &status{o: o}
	for range 2 {
		s.set(&view{verdict: verdict.Verdict{Warnings: []string{"of this boot"}}})
		if r := s.getVerdict(); !slices.Equal(r.Warnings, []string{"of the Pi", "of this boot"}) {
			t.Errorf("%q", r.Warnings)
		}
	}
	if len(o.Warnings) != 1 {
		t.Errorf("%q", o.Warnings)
	}
}
