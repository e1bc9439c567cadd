package server

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/attestserver/policy"
	"portcullis/attestserver/schedule"
	"portcullis/internal/clock"
)

// Turns come one at a time, whoever brings news, and none comes after one has failed or
// the core has ended: who brings news then is told.
func TestTurnsComeOneAtATimeAndEnd(t *testing.T) {
	for name, end := range map[string]func(*Server, context.CancelFunc){
		"the context ends": func(_ *Server, cancel context.CancelFunc) { cancel() },
		"a turn fails":     func(s *Server, _ context.CancelFunc) { s.post(func(c *core) { c.failure = errBroken }) },
	} {
		t.Run(name, func(t *testing.T) {
			s := bareServer(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				err := newCore(s).run(ctx)
				close(s.done)
				ended <- err
			}()
			<-s.ready // who works does so for a core that has begun; who posts may be earlier
			var at, taken atomic.Int32
			var group sync.WaitGroup
			for i := range 50 {
				group.Go(func() {
					do := s.post
					if i%2 == 0 {
						do = s.work
					}
					if !do(func(c *core) {
						if at.Add(1) != 1 {
							t.Error("two turns at the same time")
						}
						time.Sleep(time.Millisecond)
						c.later(func() { taken.Add(1) })
						at.Add(-1)
					}) {
						t.Error("nobody took the news")
					}
				})
			}
			group.Wait()
			end(s, cancel)
			if err := <-ended; name == "a turn fails" && !errors.Is(err, errBroken) {
				t.Error(err)
			}
			if s.post(func(*core) { t.Error("a turn after the end") }) {
				t.Error("news were taken after the end")
			}
			for limit := time.Now().Add(10 * time.Second); taken.Load() != 50 && time.Now().Before(limit); {
				time.Sleep(time.Millisecond)
			}
			if n := taken.Load(); n != 50 {
				t.Errorf("%d of 50 things that followed a turn were done", n)
			}
		})
	}
}

// bareServer has nobody to talk to.
func bareServer(t *testing.T) *Server {
	t.Helper()
	plan, err := schedule.NewPlan(2, 1)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{line: new(line), o: Options{Clock: clock.Real{}, Plan: plan, Deadline: time.Second, Posture: "none", Images: &Images{held: make(map[*Server]*openImage)}},
		ready: make(chan struct{}), broken: make(chan struct{}), done: make(chan struct{}), actions: noActions{}}
	s.policy.Store(policy.Default())
	s.status.o, s.status.s = &s.o, s
	return s
}

type noActions struct{ Actions } // carries out nothing

func (noActions) Post(policy.Firing) error { return nil }

func (noActions) Fired(string) time.Time { return time.Time{} }

var errBroken = errors.New("broken")

// While an answer is late and the next question was due at once, nothing is due: a core
// that looked again and again until then took a whole processor from all others.
func TestWaitingForALateAnswerCostsNoTurns(t *testing.T) {
	c := newCore(bareServer(t))
	now := time.Now()
	c.due, c.rekeyAt, c.rules.due = now, now.Add(time.Hour), now.Add(time.Hour)
	c.link = &link{busy: now.Add(time.Minute)}
	c.rules.dirty = false
	if d := c.wait(now); d != time.Minute {
		t.Errorf("the next turn is in %v", d)
	}
	c.asks, c.askAgain = []*asking{{}}, now // somebody waits for an answer of the PC
	if d := c.wait(now); d != time.Minute {
		t.Errorf("with a question of somebody's the next turn is in %v", d)
	}
	if d := c.wait(now.Add(time.Minute)); d != 0 {
		t.Errorf("when it may be asked again the next turn is in %v", d)
	}
}

// What happens brings new keys at once, but not before the ones in use have been so for a
// while, and never later than they come by themselves.
func TestKeysAreChangedSoonAndNotAllTheTime(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ from, at, want time.Duration }{
		{-time.Hour, time.Hour, 0},
		{time.Minute, time.Hour, time.Minute},
		{time.Minute, time.Second, time.Second},
		{-time.Hour, -time.Second, -time.Second},
	} {
		core := newCore(bareServer(t))
		core.rekeyFrom, core.rekeyAt = now.Add(c.from), now.Add(c.at)
		core.rekeySoon(now)
		if got := core.rekeyAt.Sub(now); got != c.want {
			t.Errorf("not before %v, by itself after %v: after %v", c.from, c.at, got)
		}
	}
}
