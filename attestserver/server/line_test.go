package server

import (
	"testing"
	"time"
)

// A few have their turn; who comes later has it later; who has had it stands behind.
func TestLine(t *testing.T) {
	const hold = time.Minute
	now, l := time.Unix(1000, 0), new(line)
	pcs := make([]*Server, enrolling+2)
	for i := range pcs {
		pcs[i] = &Server{}
		if got := l.enter(pcs[i], now, hold); got != (i < enrolling) {
			t.Errorf("PC %d: %v", i, got)
		}
	}
	a, fifth, sixth := pcs[0], pcs[enrolling], pcs[enrolling+1]
	if l.leave(sixth) != nil {
		t.Error("who only waited gave somebody a turn")
	}
	l.enter(sixth, now, hold)
	if l.leave(a) != fifth {
		t.Error("the turn is not that of who waits longest")
	}
	if l.enter(a, now, hold) {
		t.Error("who has had a turn has the next one as well")
	}
	if !l.enter(fifth, now, hold) || l.enter(sixth, now, hold) {
		t.Error("others have the turn")
	}
	if l.leave(&Server{}) != nil {
		t.Error("who was not there gave somebody a turn")
	}
}

// A place that nobody gives back, and one of a PC that waits no more, are free in the end.
func TestLine_PlacesAreLost(t *testing.T) {
	const hold = time.Minute
	now, l := time.Unix(1000, 0), new(line)
	for range enrolling {
		l.enter(new(Server), now, hold)
	}
	gone, waits := &Server{o: Options{Name: "gone"}}, &Server{o: Options{Name: "waits"}}
	l.enter(gone, now, hold)
	for end := now.Add(hold); !now.After(end); now = now.Add(lineLook) {
		if l.enter(waits, now, hold) {
			t.Fatalf("a turn after %v", now)
		}
	}
	if !l.enter(waits, now, hold) {
		t.Error("no turn after all places were lost")
	}
	if len(l.in) != 1 {
		t.Errorf("%d stand in the line", len(l.in))
	}
}

// Nobody has the last place of those who have left.
func TestLine_Empties(t *testing.T) {
	now, l, one, two := time.Unix(1000, 0), new(line), &Server{o: Options{Name: "1"}}, &Server{o: Options{Name: "2"}}
	l.enter(one, now, time.Minute)
	l.enter(two, now, time.Minute)
	if l.leave(one) != nil || l.leave(two) != nil || len(l.in) != 0 {
		t.Errorf("left are %d", len(l.in))
	}
}

// Enrolling is for the tests of a fleet.
const Enrolling = enrolling
