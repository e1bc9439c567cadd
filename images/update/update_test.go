package update

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"portcullis/images/bundle"
	"portcullis/images/bundle/bundletest"
	"portcullis/images/card"
	"portcullis/images/card/cardtest"
	"portcullis/internal/clock"
)

// chip is a counter that, as a chip's, never goes down.
type chip struct{ value uint64 }

func (c *chip) Value(context.Context) (uint64, error) { return c.value, nil }

func (c *chip) Raise(_ context.Context, to uint64) error {
	if to < c.value {
		return errors.New("counter-ahead")
	}
	c.value = to
	return nil
}

func commitNow(c *simCard, h *card.Handover, counter Counter) (CommitResult, error) {
	return Commit(context.Background(), CommitOptions{Card: c, Running: h, Counter: counter, Timeout: time.Hour, Clock: clock.Real{}})
}

// A whole life: update, trial, commit, the next update back into slot a.
func TestUpdateTrialCommit(t *testing.T) {
	k, c, counter := bundletest.NewKey(t), newCard(t), &chip{}
	for sequence := uint64(2); sequence <= 3; sequence++ {
		old := started(t, k, c)
		r, err := apply(c, old, k.Bundle(t, sequence, nil))
		if err != nil || !r.Changed || !r.Restart || r.Slot != old.Slot.Other() || r.Written == 0 {
			t.Fatalf("%+v %v", r, err)
		}
		h := started(t, k, c)
		if h.Sequence != sequence || !h.Trial || h.Attempt != 1 {
			t.Fatalf("%+v", h)
		}
		res, err := commitNow(c, h, counter)
		if err != nil || !res.Committed || !res.Changed || counter.value != sequence {
			t.Fatalf("%+v %v, counter %d", res, err, counter.value)
		}
		h = started(t, k, c)
		if h.Trial || h.Sequence != sequence {
			t.Fatalf("%+v", h)
		}
		if res, err := commitNow(c, h, counter); err != nil || !res.Committed || res.Changed {
			t.Errorf("a second commit: %+v %v", res, err)
		}
	}
}

// TestAttackEditedStateSkipsNoGate: who writes into the state that a trial is the active
// release has it started as such. The chip does not count it before it works, so that
// the release before still opens the volume.
func TestAttackEditedStateSkipsNoGate(t *testing.T) {
	k, c, counter := bundletest.NewKey(t), newCard(t), &chip{value: 1}
	if _, err := apply(c, started(t, k, c), k.Bundle(t, 2, nil)); err != nil {
		t.Fatal(err)
	}
	conf := cardtest.OpenConf(t, c.conf)
	s, err := conf.State()
	if err != nil {
		t.Fatal(err)
	}
	if err := conf.SetState(s.Committed()); err != nil {
		t.Fatal(err)
	}
	h := started(t, k, c)
	if h.Sequence != 2 || h.Trial {
		t.Fatalf("%+v", h)
	}
	working := false
	checks := []Check{{"pxed", func(context.Context) error {
		if !working {
			return errors.New("nothing listens")
		}
		return nil
	}}}
	for _, working = range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r, err := Commit(t.Context(), CommitOptions{Card: c, Running: h, Checks: checks, Counter: counter, Timeout: time.Minute,
				Stable: time.Second, Every: time.Second, Clock: clock.Real{}})
			var e *Error
			if working && (err != nil || counter.value != 2) || !working && (!errors.As(err, &e) || e.Reason != ReasonUnhealthy || counter.value != 1) || r.Restart {
				t.Errorf("working %t: %+v %v, counter %d", working, r, err, counter.value)
			}
		})
	}
	// Counted once, nobody looks again.
	working = false
	if r, err := commitNow(c, h, counter); err != nil || !r.Committed || r.Changed {
		t.Errorf("%+v %v", r, err)
	}
}

func TestSameBundleTwiceChangesNothing(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	h, b := started(t, k, c), k.Bundle(t, 2, nil)
	if _, err := apply(c, h, b); err != nil {
		t.Fatal(err)
	}
	before := cardtest.OpenConf(t, c.conf)
	was, _ := before.State()
	r, err := apply(c, h, b)
	if err != nil || r.Changed || !r.Restart {
		t.Errorf("staged: %+v %v", r, err)
	}
	if is, _ := cardtest.OpenConf(t, c.conf).State(); is.Generation != was.Generation {
		t.Error("staged: the state was written")
	}
	h = started(t, k, c)
	if _, err := commitNow(c, h, nil); err != nil {
		t.Fatal(err)
	}
	r, err = apply(c, started(t, k, c), b)
	if err != nil || r.Changed || r.Restart {
		t.Errorf("active: %+v %v", r, err)
	}
}

func TestUpdateRefusals(t *testing.T) {
	k := bundletest.NewKey(t)
	reasonOf := func(err error) string {
		var b *bundle.Error
		var u *Error
		var c *card.Error
		switch {
		case errors.As(err, &b):
			return b.Reason
		case errors.As(err, &u):
			return u.Reason
		case errors.As(err, &c):
			return c.Reason
		}
		t.Fatalf("no typed refusal: %v", err)
		return ""
	}
	release := func(m *bundle.Manifest) { m.Profile = card.ProfileRelease }
	for name, c := range map[string]struct {
		bundle func() []byte
		pi     func(*card.Handover)
		want   string
	}{
		"older":                {func() []byte { return k.Bundle(t, 2, nil) }, nil, bundle.ReasonOld},
		"same sequence, other": {func() []byte { return other(t, k) }, nil, bundle.ReasonOld},
		"another model":        {func() []byte { return k.Bundle(t, 9, func(m *bundle.Manifest) { m.Model = card.ModelPi5 }) }, nil, bundle.ReasonModel},
		"dev on a release card": {func() []byte { return k.Bundle(t, 9, nil) },
			func(h *card.Handover) { h.Profile = card.ProfileRelease }, bundle.ReasonProfile},
		"release on a dev card": {func() []byte { return k.Bundle(t, 9, release) }, nil, bundle.ReasonProfile},
		"another key":           {func() []byte { return bundletest.NewKey(t).Bundle(t, 9, nil) }, nil, bundle.ReasonSignature},
		"too few keys":          {func() []byte { return k.Bundle(t, 9, nil) }, func(h *card.Handover) { h.Threshold = 2 }, bundle.ReasonMalformed},
		"cut off":               {func() []byte { b := k.Bundle(t, 9, nil); return b[:len(b)-9] }, nil, bundle.ReasonTruncated},
		"not what pi-init started": {func() []byte { return k.Bundle(t, 9, nil) }, func(h *card.Handover) { h.Sequence = 1 },
			card.ReasonSlotUnknown},
		"no root hash": {func() []byte { return k.Bundle(t, 9, nil) }, func(h *card.Handover) { h.RootHash = "xy" }, ReasonNotPi},
	} {
		sim := committed3(t, k)
		h := started(t, k, sim)
		if c.pi != nil {
			c.pi(h)
		}
		was := cardtest.OpenConf(t, sim.conf)
		before, _ := was.State()
		_, err := apply(sim, h, c.bundle())
		if err == nil || reasonOf(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		if after, _ := cardtest.OpenConf(t, sim.conf).State(); after.String() != before.String() {
			t.Errorf("%s: the state changed to %s", name, after)
		}
		if got := boots(t, sim); got.Sequence != 3 {
			t.Errorf("%s: release %d is started afterwards", name, got.Sequence)
		}
	}
}

// other has sequence 3 and another system.
func other(t testing.TB, k bundletest.Key) []byte {
	m := bundletest.Manifest(9)
	m.Sequence = 3
	m.Cmdline = strings.Replace(m.Cmdline, card.ReleaseWord(9), card.ReleaseWord(3), 1)
	var b bytes.Buffer
	if _, err := bundle.Write(&b, m, bundletest.BootImage(9), bytes.NewReader(bundletest.RootImage(9)), k.Signer); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// committed3 is a card on which release 3 is active, in slot b.
func committed3(t testing.TB, k bundletest.Key) *simCard {
	c := newCard(t)
	if _, err := apply(c, started(t, k, c), k.Bundle(t, 3, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := commitNow(c, started(t, k, c), nil); err != nil {
		t.Fatal(err)
	}
	return c
}

// The only way back is never overwritten.
func TestNoUpdateWhileOneIsOnTrial(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	if _, err := apply(c, started(t, k, c), k.Bundle(t, 2, nil)); err != nil {
		t.Fatal(err)
	}
	h := started(t, k, c)
	c.opened = nil
	var e *Error
	if _, err := apply(c, h, k.Bundle(t, 3, nil)); !errors.As(err, &e) || e.Reason != ReasonTrialRunning {
		t.Errorf("%v", err)
	}
	if len(c.opened) != 0 {
		t.Errorf("slots %v were opened", c.opened)
	}
}

// A newer update takes the place of one that was never started.
func TestStagedUpdateIsReplaced(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	h := started(t, k, c)
	for _, sequence := range []uint64{2, 5} {
		if r, err := apply(c, h, k.Bundle(t, sequence, nil)); err != nil || !r.Changed {
			t.Fatalf("%+v %v", r, err)
		}
	}
	if got := started(t, k, c); got.Sequence != 5 || !got.Trial {
		t.Errorf("%+v", got)
	}
}

func TestCardThatLiesIsNotStarted(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	h := started(t, k, c)
	c.lies = true
	var e *Error
	if _, err := apply(c, h, k.Bundle(t, 2, nil)); !errors.As(err, &e) || e.Reason != ReasonReadBack {
		t.Errorf("%v", err)
	}
	if got := boots(t, c); got.Sequence != 1 {
		t.Errorf("%+v", got)
	}
}

func TestTooSmallASlotIsLeftAlone(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	h := started(t, k, c)
	c.system[card.SlotB] = cardtest.New(&cardtest.Power{CutAt: -1}, 1<<20)
	var e *Error
	if _, err := apply(c, h, k.Bundle(t, 2, nil)); !errors.As(err, &e) || e.Reason != ReasonDevice {
		t.Errorf("%v", err)
	}
}

// A release that starts and never works gives way by itself, and says why.
func TestUnhealthyReleaseFallsBack(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	if _, err := apply(c, started(t, k, c), k.Bundle(t, 2, nil)); err != nil {
		t.Fatal(err)
	}
	broken := []Check{{"pxed", func(context.Context) error { return errors.New("nothing listens") }}}
	for attempt := 1; attempt <= card.MaxAttempts; attempt++ {
		h := started(t, k, c)
		if h.Sequence != 2 || h.Attempt != attempt {
			t.Fatalf("attempt %d: %+v", attempt, h)
		}
		synctest.Test(t, func(t *testing.T) {
			r, err := Commit(t.Context(), CommitOptions{Card: c, Running: h, Checks: broken, Timeout: 3 * time.Minute, Stable: time.Second,
				Every: time.Second, Clock: clock.Real{}, Counter: &chip{}})
			var e *Error
			if !errors.As(err, &e) || e.Reason != ReasonUnhealthy || !r.Restart || r.Committed || r.Back != (attempt == card.MaxAttempts) {
				t.Errorf("attempt %d: %+v %v", attempt, r, err)
			}
			if !strings.Contains(err.Error(), "nothing listens") {
				t.Errorf("%v does not say what is missing", err)
			}
		})
	}
	h := started(t, k, c)
	s, _ := cardtest.OpenConf(t, c.conf).State()
	if h.Sequence != 1 || h.Trial || s.LastFailure != card.ReasonTrialUnhealthy {
		t.Errorf("%+v, %s, %q", h, s, s.LastFailure)
	}
}

// A release that never reaches the health gate gives way after its attempts.
func TestReleaseThatHangsFallsBack(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	if _, err := apply(c, started(t, k, c), k.Bundle(t, 2, nil)); err != nil {
		t.Fatal(err)
	}
	for range card.MaxAttempts {
		if h := started(t, k, c); h.Sequence != 2 {
			t.Fatalf("%+v", h)
		}
	}
	if h := started(t, k, c); h.Sequence != 1 {
		t.Errorf("%+v", h)
	}
	if s, _ := cardtest.OpenConf(t, c.conf).State(); s.LastFailure != card.ReasonTrialAttempts {
		t.Errorf("%q", s.LastFailure)
	}
}

// A check that comes and goes does not count as working.
func TestGateWantsAStableSystem(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	if _, err := apply(c, started(t, k, c), k.Bundle(t, 2, nil)); err != nil {
		t.Fatal(err)
	}
	h := started(t, k, c)
	synctest.Test(t, func(t *testing.T) {
		begin, looks := time.Now(), 0
		flaps := []Check{{"attestd", func(context.Context) error {
			if looks++; looks%7 == 3 && looks < 60 {
				return errors.New("restarting")
			}
			return nil
		}}}
		r, err := Commit(t.Context(), CommitOptions{Card: c, Running: h, Checks: flaps, Timeout: 3 * time.Minute, Stable: 10 * time.Second,
			Every: time.Second, Clock: clock.Real{}})
		if took := time.Since(begin); err != nil || !r.Committed || took < 60*time.Second || took > 80*time.Second {
			t.Errorf("%+v %v after %s", r, err, took)
		}
	})
}

func TestAbort(t *testing.T) {
	k, c := bundletest.NewKey(t), newCard(t)
	h := started(t, k, c)
	var e *Error
	if _, err := Abort(Options{Card: c, Running: h}); !errors.As(err, &e) || e.Reason != ReasonNoTrial {
		t.Errorf("nothing to take back: %v", err)
	}
	b := k.Bundle(t, 2, nil)
	for _, running := range []bool{false, true} {
		if _, err := apply(c, h, b); err != nil {
			t.Fatal(err)
		}
		now := h
		if running {
			now = started(t, k, c)
		}
		got, err := Abort(Options{Card: c, Running: now})
		if err != nil || got != running {
			t.Errorf("%t %v, want %t", got, err, running)
		}
		if st, err := ReadStatus(Options{Card: c, Running: now}); err != nil || st.Trial != nil || st.Next != "a" || st.LastFailure != card.ReasonTrialAborted {
			t.Errorf("%+v %v", st, err)
		}
		if now := started(t, k, c); now.Sequence != 1 {
			t.Errorf("%+v", now)
		}
	}
}
