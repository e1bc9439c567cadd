package services

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
	"portcullis/verifier/approval"
	"portcullis/verifier/declared"
	"portcullis/verifier/engine"
	"portcullis/verifier/guard"
)

// lost is a guard before an engine that does not answer: its containers go on.
type lost struct {
	Guard
	owned []guard.Owned

	mu    sync.Mutex
	asked int
	ended []string
}

var errAway = errors.New("the engine is away")

func (l *lost) Fit() error           { return errAway }
func (l *lost) Owned() []guard.Owned { return l.owned }

func (l *lost) Standing(context.Context, string) (engine.Standing, error) {
	return engine.Standing{Running: true}, nil
}

func (l *lost) Ended(context.Context, string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	return errAway
}

func (l *lost) EndOwn(_ context.Context, id string, _ time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = append(l.ended, id)
	return nil
}

type unchanged struct{}

func (unchanged) Changed() <-chan struct{} { return nil }

// While the engine does not answer a service that goes on is told of once, and is not ended.
func TestEngineThatIsAwayIsNoNews(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	another(t, socket)
	s := Service{Own: guard.Own{Name: "portcullis-attestd", Purpose: declared.Purpose("attestd"), Profile: approval.Profile{User: "972:970"}}, Socket: socket}
	g := &lost{owned: []guard.Owned{{ID: "one", Own: s.Own}}}
	log := &eventtest.Buffer{}
	k := New([]Service{s}, g, unchanged{}, clock.Real{}, event.NewJSON(log, "verifierd", time.Now))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	run := &one{Keeper: k, s: s, up: func() {}}
	go func() { defer close(done); run.keep(ctx) }()
	until(t, "three questions", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.asked >= 3 })
	cancel()
	<-done
	if told := log.String(); strings.Count(told, `"service.ready"`) != 1 || strings.Count(told, "\n") != 2 || len(g.ended) != 0 {
		t.Errorf("ended %v, told\n%s", g.ended, told)
	}
	if st := k.Status(); st[0].State != declared.StateRunning || st[0].Container != "one" {
		t.Errorf("%+v", st)
	}
}

// dim is a guard before an engine that gives no answer the first times it is asked, and
// then the one that it has.
type dim struct {
	lost
	fails  int
	answer error // nil: it runs
}

func (d *dim) Standing(context.Context, string) (engine.Standing, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fails--; d.fails >= 0 {
		return engine.Standing{}, errAway
	}
	return engine.Standing{Running: d.answer == nil}, d.answer
}

// A service that runs on is not ended because the engine was busy when it was asked; only
// what the engine says of it counts.
func TestAdoptedAfterQuestionsThatFailed(t *testing.T) {
	s := Service{Own: guard.Own{Name: "portcullis-attestd", Purpose: declared.Purpose("attestd"), Profile: approval.Profile{User: "972:970"}}}
	for name, c := range map[string]struct {
		own   guard.Own
		gone  error
		want  string
		ended int
	}{
		"it runs":           {s.Own, nil, "one", 0},
		"it is gone":        {s.Own, engine.ErrNotFound, "", 1},
		"it is another one": {guard.Own{Name: "portcullis-attestd", Purpose: s.Purpose, Profile: approval.Profile{User: "0:0"}}, nil, "", 1},
	} {
		g := &dim{lost: lost{owned: []guard.Owned{{ID: "one", Own: c.own}}}, fails: 2, answer: c.gone}
		run := &one{Keeper: New([]Service{s}, g, unchanged{}, clock.Real{}, event.NewJSON(&eventtest.Buffer{}, "verifierd", time.Now)), s: s, up: func() {}}
		if id := run.adopt(t.Context()); id != c.want || len(g.ended) != c.ended {
			t.Errorf("%s: adopted %q, ended %v", name, id, g.ended)
		}
	}
	// Without any answer nothing is ended either.
	g := &dim{lost: lost{owned: []guard.Owned{{ID: "one", Own: s.Own}}}, fails: 1 << 30}
	run := &one{Keeper: New([]Service{s}, g, unchanged{}, clock.Real{}, event.NewJSON(&eventtest.Buffer{}, "verifierd", time.Now)), s: s, up: func() {}}
	ctx, cancel := context.WithTimeout(t.Context(), lookEvery)
	defer cancel()
	if id := run.adopt(ctx); id != "" || len(g.ended) != 0 {
		t.Errorf("no answer: adopted %q, ended %v", id, g.ended)
	}
}

// leaping is a clock on which nobody waits: the time that was asked for is over at once. It
// ends what takes too long.
type leaping struct {
	mu   sync.Mutex
	now  time.Time
	ends time.Time
	end  func()
}

func (l *leaping) Now() time.Time { l.mu.Lock(); defer l.mu.Unlock(); return l.now }

func (l *leaping) After(d time.Duration) <-chan time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now = l.now.Add(d); l.now.After(l.ends) {
		l.end()
	}
	fired := make(chan time.Time, 1)
	fired <- l.now
	return fired
}

// mute is a guard before an engine that is fit, but for the first times it is asked, and
// never tells how a container stands: it hangs on some questions until they are given up.
type mute struct {
	lost
	unfit int
	hangs int // questions without an end
}

func (m *mute) Fit() error {
	if m.unfit--; m.unfit >= 0 {
		return errAway
	}
	return nil
}

func (m *mute) Standing(ctx context.Context, _ string) (engine.Standing, error) {
	if _, ends := ctx.Deadline(); !ends {
		m.hangs++
	}
	return engine.Standing{}, errAway
}

// A container of which the engine never tells how it stands holds up nothing for longer than a
// minute, counted while the engine is fit: it is told why, and ended to be made anew.
func TestContainerThatTheEngineNeverTellsOf(t *testing.T) {
	const unfit = 1000
	s := Service{Own: guard.Own{Name: "portcullis-attestd", Purpose: declared.Purpose("attestd")}}
	for name, c := range map[string]struct {
		unfit int
		ask   func(*one, context.Context) bool // true: it is held to be there
		ended int
	}{
		"of a former life": {0, func(o *one, ctx context.Context) bool { return o.adopt(ctx) != "" }, 1},
		"after its end": {0, func(o *one, ctx context.Context) bool {
			at, err := o.lasts(ctx, "one")
			return !o.ended(ctx, "one", firstWait, at, err)
		}, 0},
		"engine away first": {unfit, func(o *one, ctx context.Context) bool { return o.adopt(ctx) != "" }, 1},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began, log, ups := time.Unix(1700000000, 0), &eventtest.Buffer{}, 0
		clock := &leaping{now: began, ends: began.Add(unfit*lookEvery + 2*tellsIn), end: cancel}
		g := &mute{lost: lost{owned: []guard.Owned{{ID: "one", Own: s.Own}}}, unfit: c.unfit}
		run := &one{Keeper: New([]Service{s}, g, unchanged{}, clock, event.NewJSON(log, "verifierd", clock.Now)), s: s, up: func() { ups++ }}
		held := c.ask(run, ctx)
		if ctx.Err() != nil {
			t.Errorf("%s: asked for ever", name)
			continue
		}
		least := tellsIn + time.Duration(c.unfit)*lookEvery
		if took := clock.Now().Sub(began); held || took < least-lookEvery || took > least+lookEvery+firstWait {
			t.Errorf("%s: held %t, after %s", name, held, took)
		}
		if told := log.String(); strings.Count(told, `"service.unknown"`) != 1 || strings.Contains(told, `"service.ended"`) || !strings.Contains(told, ReasonUnknown) || ups == 0 || len(g.lost.ended) != c.ended {
			t.Errorf("%s: ended %v, next %d times, told\n%s", name, g.lost.ended, ups, told)
		}
		if g.hangs > 0 {
			t.Errorf("%s: an engine that hangs is waited for without end, %d times", name, g.hangs)
		}
		if st := run.Status()[0]; st.State != declared.StateFailed || st.Reason != ReasonUnknown {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

// scripted is a guard before an engine that is fit, and answers as a test says.
type scripted struct {
	lost
	standing func(asked int) (engine.Standing, error)
	end      func(asked int) error
	start    func()
	wait     func(context.Context) error

	stood, stops int
}

func (s *scripted) Fit() error { return nil }

func (s *scripted) Standing(context.Context, string) (engine.Standing, error) {
	s.stood++
	return s.standing(s.stood)
}

func (s *scripted) Ended(ctx context.Context, _ string) error { return s.wait(ctx) }

func (s *scripted) EndOwn(ctx context.Context, id string, _ time.Duration) error {
	if _, ends := ctx.Deadline(); !ends {
		panic("an end that is waited for without end")
	}
	s.stops++
	err := s.end(s.stops)
	if err == nil {
		s.owned = nil
	}
	return err
}

func (s *scripted) StartOwn(context.Context, guard.Own) (string, error) {
	s.start()
	return "", errAway
}

func (s *scripted) LastWords(context.Context, string) string { return "last words" }

// names are those of the events that were told.
func names(log *eventtest.Buffer) (out []string) {
	for line := range strings.Lines(log.String()) {
		var e struct{ Event string }
		if json.Unmarshal([]byte(line), &e) == nil {
			out = append(out, e.Event)
		}
	}
	return out
}

// The end of a service is seen also where waiting for it always fails; what cannot be known of
// it is told and ended; and a container of its own that answers still is nobody else's.
func TestEndWithoutAnEngineThatWaits(t *testing.T) {
	runs := func() (engine.Standing, error) { return engine.Standing{Running: true}, nil }
	for name, c := range map[string]struct {
		standing func(asked int, gone func()) (engine.Standing, error)
		fails    int // so often it cannot be ended
		told     []string
		detail   string
	}{
		"it ended": {func(asked int, gone func()) (engine.Standing, error) {
			if asked < 5 {
				return runs()
			}
			gone()
			return engine.Standing{Exit: 3}, nil
		}, 0, []string{"service.adopted", "service.ready", "service.ended"}, `"exit":3`},
		"it is gone": {func(asked int, gone func()) (engine.Standing, error) {
			if asked < 5 {
				return runs()
			}
			gone()
			return engine.Standing{}, engine.ErrNotFound
		}, 0, []string{"service.adopted", "service.ready", "service.ended"}, "its container is gone"},
		"nothing is told of it any more": {func(asked int, _ func()) (engine.Standing, error) {
			if asked < 5 {
				return runs()
			}
			return engine.Standing{}, errAway
		}, 0, []string{"service.adopted", "service.ready", "service.unknown", "service.stopped"}, ReasonUnknown},
		"nothing was ever told of it": {func(int, func()) (engine.Standing, error) { return engine.Standing{}, errAway },
			0, []string{"service.unknown", "service.stopped"}, ReasonUnknown},
		"nothing was told of it, and it cannot be ended": {func(int, func()) (engine.Standing, error) { return engine.Standing{}, errAway },
			4, []string{"service.unknown", "service.stopped", "service.stopped", "service.stopped"}, `"failed"`},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			gone := another(t, socket)
			s := Service{Own: guard.Own{Name: "portcullis-attestd", Purpose: declared.Purpose("attestd")}, Socket: socket}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			log, started, ups := &eventtest.Buffer{}, 0, 0
			began := time.Unix(1700000000, 0)
			clock := &leaping{now: began, ends: began.Add(4 * tellsIn), end: cancel}
			g := &scripted{lost: lost{owned: []guard.Owned{{ID: "one", Own: s.Own}}}, start: func() { started++; cancel() },
				standing: func(asked int) (engine.Standing, error) { return c.standing(asked, gone) },
				end: func(asked int) error {
					if asked <= c.fails {
						return errAway
					}
					gone()
					return nil
				},
				wait: func(context.Context) error { return errAway }}
			run := &one{Keeper: New([]Service{s}, g, unchanged{}, clock, event.NewJSON(log, "verifierd", clock.Now)), s: s, up: func() { ups++ }}
			run.keep(ctx)
			if told := names(log); !slices.Equal(told, c.told) || !strings.Contains(log.String(), c.detail) || started != 1 || ups == 0 {
				t.Errorf("started %d times, next %d times, told\n%s", started, ups, log)
			}
		})
	}
}

// stuck is a guard before an engine that does not end containers the first times.
type stuck struct {
	lost
	fails    int
	endless  int // calls without an end
	attempts int
}

func (s *stuck) Fit() error { return nil }

func (s *stuck) EndOwn(ctx context.Context, id string, _ time.Duration) error {
	s.attempts++
	if _, ends := ctx.Deadline(); !ends {
		s.endless++
	}
	if s.fails--; s.fails >= 0 {
		return errAway
	}
	s.owned = slices.DeleteFunc(s.owned, func(o guard.Owned) bool { return o.ID == id })
	return nil
}

// A container of a former configuration that cannot be ended is tried again until it is gone, each
// time with an end; what is told is that it failed, and that it went.
func TestContainerOfAFormerConfigurationIsTriedAgain(t *testing.T) {
	for _, fails := range []int{0, 5} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log, began := &eventtest.Buffer{}, time.Unix(1700000000, 0)
		clock := &leaping{now: began, ends: began.Add(time.Hour), end: cancel}
		g := &stuck{lost: lost{owned: []guard.Owned{{ID: "former", Own: guard.Own{Name: "portcullis-noded", Purpose: declared.Purpose("noded")}}}}, fails: fails}
		if err := New(nil, g, unchanged{}, clock, event.NewJSON(log, "verifierd", clock.Now)).Run(ctx); err != nil || ctx.Err() != nil {
			t.Fatal(err, ctx.Err())
		}
		if took := clock.Now().Sub(began); len(g.owned) != 0 || g.attempts != fails+1 || g.endless != 0 || took != time.Duration(fails)*askAgain {
			t.Errorf("%d failures: %d attempts, %d without an end, in %s; left %v", fails, g.attempts, g.endless, took, g.owned)
		}
		if told := log.String(); strings.Count(told, `"failed"`) != min(fails, 1) || strings.Count(told, `"service.stopped"`) != 1+min(fails, 1) {
			t.Errorf("%d failures, told\n%s", fails, told)
		}
	}
	// Who ends the keeper meanwhile does not wait for it.
	ctx, cancel := context.WithCancel(t.Context())
	began, log := time.Unix(1700000000, 0), &eventtest.Buffer{}
	clock := &leaping{now: began, ends: began.Add(3 * askAgain), end: cancel}
	g := &stuck{lost: lost{owned: []guard.Owned{{ID: "former", Own: guard.Own{Purpose: declared.Purpose("noded")}}}}, fails: 1 << 30}
	if err := New(nil, g, unchanged{}, clock, event.NewJSON(log, "verifierd", clock.Now)).Run(ctx); err != nil || len(g.owned) != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%v, left %v, told\n%s", err, g.owned, log)
	}
}

// One question that fails while a service comes up hides nothing: it is told when it is ready,
// and the next one may start.
func TestQuestionThatFailsWhileItStarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	s := Service{Own: guard.Own{Name: "portcullis-pxed", Purpose: declared.Purpose("pxed")}, Socket: socket}
	failed := make(chan struct{})
	g := &scripted{lost: lost{owned: []guard.Owned{{ID: "one", Own: s.Own}}},
		standing: func(asked int) (engine.Standing, error) {
			if asked == 2 {
				close(failed)
				return engine.Standing{}, errAway
			}
			return engine.Standing{Running: true}, nil
		},
		wait: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	log, up := &eventtest.Buffer{}, make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	run := &one{Keeper: New([]Service{s}, g, unchanged{}, clock.Real{}, event.NewJSON(log, "verifierd", time.Now)), s: s, up: sync.OnceFunc(func() { close(up) })}
	go func() { defer close(done); run.keep(ctx) }()
	<-failed
	another(t, socket)
	select {
	case <-up:
	case <-time.After(30 * time.Second):
		t.Fatal("the next one is not started")
	}
	if st := run.Status()[0]; st.State != declared.StateRunning || !strings.Contains(log.String(), `"service.ready"`) {
		t.Errorf("%+v, told\n%s", st, log)
	}
}

// Nothing listens at a socket that is left; our own bell is nobody else.
func TestAnswers(t *testing.T) {
	dir := t.TempDir()
	if answers(filepath.Join(dir, "none")) {
		t.Error("nothing answers")
	}
	own, err := net.Listen("unix", filepath.Join(dir, "own"))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if answers(own.Addr().String()) {
		t.Error("our own bell is taken for a service")
	}
	other := filepath.Join(dir, "other")
	end := another(t, other)
	if !answers(other) {
		t.Error("another process is not seen")
	}
	end()
	if answers(other) {
		t.Error("a socket that is left is taken for a service")
	}
}

// slow is a guard before an engine that takes its time to remove a container.
type slow struct {
	lost
	removed chan struct{} // closed when that is done
}

func (s *slow) EndOwn(ctx context.Context, _ string, _ time.Duration) error {
	if _, ends := ctx.Deadline(); ends {
		<-s.removed
	}
	return nil
}

// Who asks for a service that is done finds its bell, also while its container is still
// being removed; the service begins again when that is over.
func TestBellIsThereBeforeTheContainerIsGone(t *testing.T) {
	listens, ring := make(chan struct{}), make(chan struct{})
	s := Service{Own: guard.Own{Name: "portcullis-pxed", Purpose: declared.Purpose("pxed")}, Bell: func(ctx context.Context) (string, error) {
		close(listens)
		select {
		case <-ctx.Done():
		case <-ring:
		}
		return whyClaim, nil
	}}
	g := &slow{removed: make(chan struct{})}
	log := &eventtest.Buffer{}
	run := &one{Keeper: New([]Service{s}, g, unchanged{}, clock.Real{}, event.NewJSON(log, "verifierd", time.Now)), s: s, up: func() {}}
	done := make(chan struct{})
	go func() { defer close(done); run.rest(t.Context(), "one") }()
	select {
	case <-listens:
	case <-time.After(30 * time.Second):
		t.Fatal("nobody listens while the container is removed")
	}
	if st := run.Status()[0].State; st == declared.StateResting {
		t.Errorf("%s while its container is there", st)
	}
	close(ring)
	close(g.removed)
	<-done
	if told := log.String(); !strings.Contains(told, `"service.resting"`) || !strings.Contains(told, whyClaim) {
		t.Errorf("told\n%s", told)
	}
}

// held is a guard before an engine that hangs on a container of a former configuration.
type held struct {
	lost
	started chan struct{}
}

func (h *held) Fit() error { return nil }

func (h *held) EndOwn(ctx context.Context, _ string, _ time.Duration) error {
	<-ctx.Done()
	return ctx.Err()
}

func (h *held) StartOwn(ctx context.Context, _ guard.Own) (string, error) {
	close(h.started)
	<-ctx.Done()
	return "", ctx.Err()
}

// A container of a former configuration that the engine hangs on holds up no service, and not the end.
func TestFormerConfigurationHoldsUpNothing(t *testing.T) {
	s := Service{Own: guard.Own{Name: "portcullis-pxed", Purpose: declared.Purpose("pxed")}, Socket: filepath.Join(t.TempDir(), "s")}
	g := &held{lost: lost{owned: []guard.Owned{{ID: "former", Own: guard.Own{Purpose: declared.Purpose("noded")}}}}, started: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- New([]Service{s}, g, unchanged{}, clock.Real{}, event.NewJSON(&eventtest.Buffer{}, "verifierd", time.Now)).Run(ctx)
	}()
	select {
	case <-g.started:
	case <-time.After(20 * time.Second):
		t.Error("the service waits for it")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
