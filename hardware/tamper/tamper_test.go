package tamper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/internal/event"
)

// fakeClock never moves by itself.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *fakeClock) After(time.Duration) <-chan time.Time { return time.After(time.Millisecond) }

func (c *fakeClock) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// hands write down what they are told. A step in fails fails, and one in dies is done
// and then kills the process, before anything about it can be written.
type hands struct {
	did   []string
	fails map[string]error
	dies  string
}

type killed struct{}

func (h *hands) do(s string) error {
	if err := h.fails[s]; err != nil {
		return err
	}
	h.did = append(h.did, s)
	if h.dies == s {
		h.dies = ""
		panic(killed{})
	}
	return nil
}

func (h *hands) DropPC(context.Context) error { return h.do("drop-pc") }
func (h *hands) Cap(context.Context) error    { return h.do("cap") }
func (h *hands) Forget(context.Context) error { return h.do("forget") }
func (h *hands) Erase(context.Context) error  { return h.do("erase") }

var everything = Config{Sources: map[string]Action{"chassis": Lock, "perimeter-0": Destroy, "door": Report},
	Lock: ConfirmLock, Destroy: ConfirmDestroy}

type rig struct {
	t     *testing.T
	path  string
	clock *fakeClock
	hands *hands
	log   bytes.Buffer
	conf  Config
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, path: filepath.Join(t.TempDir(), "tamper.journal"), clock: &fakeClock{now: time.Unix(1_800_000_000, 0)},
		hands: &hands{fails: map[string]error{}}, conf: everything}
}

func (r *rig) open() *Machine {
	r.t.Helper()
	p, err := NewPolicy(r.conf)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := Open(r.path, p, r.hands, event.NewJSON(&r.log, "test", r.clock.Now), r.clock)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r *rig) once(source string) {
	m := r.open()
	defer m.Close()
	m.Seen(hardware.Tamper{Time: r.clock.Now(), Source: source})
	m.Finish(r.t.Context())
}

func TestEachActionDoesExactlyItsSteps(t *testing.T) {
	for source, want := range map[string][]string{
		"door":         nil,
		"chassis":      {"drop-pc", "cap"},
		"perimeter-0":  {"drop-pc", "cap", "forget", "erase"},
		"never listed": nil,
		"perimeter-1":  nil,
	} {
		r := newRig(t)
		r.once(source)
		if !slices.Equal(r.hands.did, want) {
			t.Errorf("%s: %v instead of %v", source, r.hands.did, want)
		}
		if !strings.Contains(r.log.String(), EventSeen) {
			t.Errorf("%s: no event", source)
		}
	}
}

func TestOptInIsWordForWordAndForEach(t *testing.T) {
	for name, c := range map[string]Config{
		"lock without opt-in":             {Sources: map[string]Action{"a": Lock}},
		"destroy without opt-in":          {Sources: map[string]Action{"a": Destroy}},
		"destroy with the opt-in of lock": {Sources: map[string]Action{"a": Destroy}, Lock: ConfirmLock},
		"lock with the opt-in of destroy": {Sources: map[string]Action{"a": Lock}, Destroy: ConfirmDestroy},
		"yes":                             {Sources: map[string]Action{"a": Destroy}, Destroy: "yes"},
		"capitals":                        {Sources: map[string]Action{"a": Destroy}, Destroy: "Erase my disk"},
		"space":                           {Sources: map[string]Action{"a": Lock}, Lock: ConfirmLock + " "},
		"wrong opt-in, not used":          {Destroy: "true"},
		"unknown action":                  {Sources: map[string]Action{"a": "explode"}},
		"empty action":                    {Sources: map[string]Action{"a": ""}},
		"source with spaces":              {Sources: map[string]Action{"a b": Report}},
		"empty source":                    {Sources: map[string]Action{"": Report}},
	} {
		if p, err := NewPolicy(c); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	many := Config{Sources: map[string]Action{}}
	for i := range maxSources + 1 {
		many.Sources[fmt.Sprintf("s%d", i)] = Report
	}
	if _, err := NewPolicy(many); err == nil {
		t.Error("any number of sources")
	}
	var zero Policy
	if zero.Action("chassis") != Report || zero.Most() != Report {
		t.Error("the zero policy does more than report")
	}
	if p, err := NewPolicy(everything); err != nil || p.Most() != Destroy {
		t.Error(p, err)
	}
}

// run runs f as a process that hands may kill.
func (r *rig) run(f func(m *Machine)) (died bool) {
	m := r.open()
	defer m.Close() // as the kernel closes files
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			died = true
		}
	}()
	f(m)
	return false
}

func TestKilledBehindEveryStepItGoesOnAndEnds(t *testing.T) {
	all := []string{"drop-pc", "cap", "forget", "erase"}
	for _, at := range all {
		r := newRig(t)
		r.hands.dies = at
		if !r.run(func(m *Machine) {
			m.Seen(hardware.Tamper{Source: "perimeter-0"})
			m.Finish(t.Context())
		}) {
			t.Fatalf("%s: not killed", at)
		}
		if r.run(func(m *Machine) {
			if m.Unfinished() != 1 {
				t.Errorf("%s: %d unfinished", at, m.Unfinished())
			}
			m.Finish(t.Context())
			if m.Unfinished() != 0 {
				t.Errorf("%s: still unfinished", at)
			}
		}) {
			t.Fatal("killed again")
		}
		for _, s := range all {
			n := 0
			for _, d := range r.hands.did {
				if d == s {
					n++
				}
			}
			if n != 1 && !(s == at && n == 2) {
				t.Errorf("killed behind %s: %s was done %d times: %v", at, s, n, r.hands.did)
			}
		}
		// A third start has nothing to do.
		before := len(r.hands.did)
		r.run(func(m *Machine) { m.Finish(t.Context()) })
		if len(r.hands.did) != before {
			t.Errorf("%s: done again: %v", at, r.hands.did)
		}
	}
}

func TestOptingOutStopsWhatIsUnfinished(t *testing.T) {
	r := newRig(t)
	r.hands.fails["drop-pc"] = errors.New("gateway is away")
	r.hands.fails["cap"], r.hands.fails["forget"], r.hands.fails["erase"] = errors.New("x"), errors.New("x"), errors.New("x")
	r.once("perimeter-0")
	if len(r.hands.did) != 0 {
		t.Fatal(r.hands.did)
	}
	clear(r.hands.fails)
	r.conf = Config{Sources: map[string]Action{"perimeter-0": Lock}, Lock: ConfirmLock}
	r.run(func(m *Machine) { m.Finish(t.Context()) })
	if !slices.Equal(r.hands.did, []string{"drop-pc", "cap"}) {
		t.Errorf("%v: more than is opted in to now", r.hands.did)
	}
	// The other way round: what was only reported is not destroyed later.
	r = newRig(t)
	r.conf = Config{}
	r.once("perimeter-0")
	r.conf = everything
	r.run(func(m *Machine) { m.Finish(t.Context()) })
	if len(r.hands.did) != 0 {
		t.Errorf("%v: an old event was raised", r.hands.did)
	}
}

func TestFailedStepIsTriedAgainAndOthersAreDone(t *testing.T) {
	r := newRig(t)
	r.hands.fails["drop-pc"] = errors.New("gateway is away")
	r.hands.fails["forget"] = &hardware.Error{Reason: hardware.ReasonUnsupported, Err: errors.New("cannot")}
	m := r.open()
	defer m.Close()
	m.Seen(hardware.Tamper{Source: "perimeter-0"})
	m.Finish(t.Context())
	m.Finish(t.Context())
	if !slices.Equal(r.hands.did, []string{"cap", "erase"}) || m.Unfinished() != 1 {
		t.Errorf("%v, %d unfinished", r.hands.did, m.Unfinished())
	}
	if n := strings.Count(r.log.String(), "gateway is away"); n != 1 {
		t.Errorf("the same failure was told %d times", n)
	}
	delete(r.hands.fails, "drop-pc")
	m.Finish(t.Context())
	if !slices.Equal(r.hands.did, []string{"cap", "erase", "drop-pc"}) || m.Unfinished() != 0 {
		t.Errorf("%v, %d unfinished", r.hands.did, m.Unfinished())
	}
}

func TestRepeatedEventsAreOneButALaterOneCountsAgain(t *testing.T) {
	r := newRig(t)
	m := r.open()
	defer m.Close()
	for range 1000 {
		m.Seen(hardware.Tamper{Source: "chassis", Detail: strings.Repeat("x", 10000)})
	}
	m.Finish(t.Context())
	if !slices.Equal(r.hands.did, []string{"drop-pc", "cap"}) || strings.Count(r.log.String(), EventSeen) != 1 {
		t.Errorf("%v", r.hands.did)
	}
	r.clock.advance(time.Minute)
	m.Seen(hardware.Tamper{Source: "chassis"})
	m.Finish(t.Context())
	if len(r.hands.did) != 4 {
		t.Errorf("%v: after a minute of peace the lock must close again", r.hands.did)
	}
	for i := range 10 * maxKnown {
		m.Seen(hardware.Tamper{Source: fmt.Sprintf("s%d", i)})
	}
	if len(m.last) > maxKnown {
		t.Errorf("%d sources are remembered", len(m.last))
	}
}

func TestJournalThatFailsDoesNotDisarm(t *testing.T) {
	r := newRig(t)
	m := r.open()
	if err := m.Close(); err != nil { // every write fails from here on
		t.Fatal(err)
	}
	m.Seen(hardware.Tamper{Source: "chassis"})
	m.Finish(t.Context())
	if !slices.Equal(r.hands.did, []string{"drop-pc", "cap"}) || !strings.Contains(r.log.String(), EventJournal) {
		t.Errorf("%v\n%s", r.hands.did, r.log.String())
	}
}

func TestRunReactsUntilTheEnd(t *testing.T) {
	r := newRig(t)
	r.hands.fails["cap"] = errors.New("busy")
	m := r.open()
	defer m.Close()
	events := make(chan hardware.Tamper)
	done := make(chan error, 1)
	go func() { done <- m.Run(t.Context(), events) }()
	events <- hardware.Tamper{Source: "chassis"}
	events <- hardware.Tamper{Source: "door"}
	close(events)
	if err := <-done; err != nil || !slices.Equal(r.hands.did, []string{"drop-pc"}) {
		t.Errorf("%v, %v", r.hands.did, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx, make(chan hardware.Tamper)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"incident":1,"what":"seen","action":"lock","tamper":{"time":"2026-01-01T00:00:00Z","source":"a"}}`))
	f.Add([]byte(`{"version":1,"incident":1,"what":"done","step":"cap"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		m := &Machine{next: 1}
		m.replay(r)
		m.replay(record{Incident: r.Incident, What: whatEnd})
	})
}
