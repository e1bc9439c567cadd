package server_test

import (
	"testing"
	"time"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/schedule"
)

// calm is a lab with an honest agent whose next challenge is far away.
func calm(t *testing.T) *lab {
	t.Helper()
	return believed(t, "rules: []", func(l *lab) {
		l.mean, l.min = 10*time.Minute, 5*time.Minute
		l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Carrier: true})
	})
}

// answered waits for n answers after position from, each of a challenge of its own,
// and returns the position after the last.
func (l *lab) answered(from, n int) int {
	l.t.Helper()
	for range n {
		at, _ := l.await(from, "challenge", nil)
		at, _ = l.await(at, "evidence", nil)
		from = at + 1
	}
	return from
}

// challenges counts those after position from.
func (l *lab) challenges(from int) (n int) {
	for {
		at, e, _ := l.events.find(from, "challenge", nil)
		if e == nil {
			return n
		}
		from, n = at+1, n+1
	}
}

// A grant that is given, one that ends, and one that came and went between two looks
// at gatewayd each bring a burst of three challenges and no more, and gatewayd's word
// is heeded at once: by its polls alone the five would take 8 s at least.
func TestTasksThatBeginAndEndBringABurst(t *testing.T) {
	l := calm(t)
	// attestd must have heard gatewayd's first word, to which the others are compared.
	for l.gatewayd.asked.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	begin, from := l.events.count(), l.events.count()
	started := time.Now()
	steps := []func(*portcullisv1.GetGatewayStatusResponse){
		func(s *portcullisv1.GetGatewayStatusResponse) {
			s.Grants, s.GrantChanges = []*portcullisv1.Grant{{Id: "g", Task: "build"}}, 1
		},
		func(s *portcullisv1.GetGatewayStatusResponse) { s.Grants, s.GrantChanges = nil, 2 },
		func(s *portcullisv1.GetGatewayStatusResponse) { s.GrantChanges = 4 },
		func(s *portcullisv1.GetGatewayStatusResponse) { s.GrantChanges = 5 },
		func(s *portcullisv1.GetGatewayStatusResponse) { s.GrantChanges = 6 },
	}
	for _, step := range steps {
		l.gatewayd.change(step)
		l.await(from, "challenge.burst", map[string]any{"session": sid, "cause": "task"})
		from = l.answered(from, schedule.BurstSize)
	}
	// Five bursts wait for 5 s at most, so only the sum of both would be slower.
	if d := time.Since(started); d > 8*time.Second {
		t.Errorf("five bursts took %v", d)
	}
	time.Sleep(2 * schedule.BurstSpan / schedule.BurstSize) // one more would come within half of it
	if n := l.challenges(begin); n != len(steps)*schedule.BurstSize {
		t.Errorf("%d challenges in %d bursts", n, len(steps))
	}
	if v := l.verdict(); v.State != portcullisv1.TrustState_TRUST_STATE_TRUSTED || v.Failures != 0 {
		t.Errorf("an honest PC is %v with %d failures", v.State, v.Failures)
	}
}

// A cable that loses its carrier and one that has it again bring a burst each. (A loss that
// gatewayd counts ends the session besides: TestAttack_CarrierLossVoidsTheSession.)
func TestChangesOfTheCarrierBringABurst(t *testing.T) {
	l := calm(t)
	for l.gatewayd.asked.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	begin, from := l.events.count(), l.events.count()
	for _, carrier := range []bool{false, true} {
		l.gatewayd.change(func(s *portcullisv1.GetGatewayStatusResponse) { s.Carrier = carrier })
		l.await(from, "challenge.burst", map[string]any{"session": sid, "cause": "carrier"})
		from = l.answered(from, schedule.BurstSize)
	}
	time.Sleep(2 * schedule.BurstSpan / schedule.BurstSize) // one more would come within half of it
	if n := l.challenges(begin); n != 2*schedule.BurstSize {
		t.Errorf("%d challenges in 2 bursts", n)
	}
}

// What changes nothing of tasks and cable brings nothing.
func TestOtherNewsOfTheWireBringNoBurst(t *testing.T) {
	l := calm(t)
	for l.gatewayd.asked.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	from, n := l.events.count(), l.gatewayd.asked.Load()
	l.gatewayd.change(func(s *portcullisv1.GetGatewayStatusResponse) { s.ViolationsTotal = 9 })
	for l.gatewayd.asked.Load() < n+2 {
		time.Sleep(time.Millisecond)
	}
	if _, e, _ := l.events.find(from, "challenge.burst", nil); e != nil {
		t.Errorf("%v", e)
	}
}
