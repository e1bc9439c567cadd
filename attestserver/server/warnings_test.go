package server

import (
	"context"
	"slices"
	"testing"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/verdict"
	"portcullis/internal/clock"
)

// What there is to say of the Pi stands in front of every verdict's own warnings.
func TestWarningsOfThePiStandBesideEveryVerdict(t *testing.T) {
	o := &Options{Warnings: []string{"of the Pi"}, Clock: clock.Real{}}
	s := &status{o: o}
	for range 2 {
		s.set(&view{verdict: verdict.Verdict{Warnings: []string{"of this boot"}}})
		r, err := s.GetVerdict(context.Background(), connect.NewRequest(&portcullisv1.GetVerdictRequest{}))
		if err != nil || !slices.Equal(r.Msg.Warnings, []string{"of the Pi", "of this boot"}) {
			t.Errorf("%q, %v", r.Msg.GetWarnings(), err)
		}
	}
	if len(o.Warnings) != 1 {
		t.Errorf("%q", o.Warnings)
	}
}
