package update

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"portcullis/images/card"
	"portcullis/internal/clock"
)

// Check is one thing that a healthy system does.
type Check struct {
	Name string
	Run  func(context.Context) error
}

// Counter is the chip's counter of accepted releases.
type Counter interface {
	Value(ctx context.Context) (uint64, error)
	Raise(ctx context.Context, to uint64) error
}

// CommitOptions of Commit.
type CommitOptions struct {
	Card    Card
	Running *card.Handover
	Checks  []Check
	Counter Counter       // nil: this Pi has no chip
	Timeout time.Duration // for the checks to hold together for Stable
	Stable  time.Duration
	Every   time.Duration // between two looks
	Clock   clock.Clock
	// Waiting is told what is still missing whenever that changes; it may be nil.
	Waiting func(missing []string)
}

// CommitResult says what Commit did.
type CommitResult struct {
	Slot      card.Slot `json:"slot"`
	Sequence  uint64    `json:"sequence"`
	Committed bool      `json:"committed"` // it is the active release now
	Changed   bool      `json:"changed"`   // it was on trial before
	Restart   bool      `json:"restart"`   // the machine has to start again
	Back      bool      `json:"back"`      // and then starts the old release
}

// Commit makes the release that runs the active one, once it is healthy, and
// raises the chip's counter to it, so that the chip refuses every older one. It can be
// killed at every moment and called again.
//
// A release that stands on the card as the active one and that the chip has not
// counted was committed before a power cut, or by somebody who edited the card: the
// chip cannot tell, so that it has to be healthy before it is counted. Until then the
// chip opens the volume to the older release as well.
//
// A trial that does not become healthy in time is refused with ReasonUnhealthy: the
// caller restarts the machine, which counts as an attempt; after the last one the
// old release is selected here already.
func Commit(ctx context.Context, o CommitOptions) (CommitResult, error) {
	own, err := runningRelease(o.Running)
	if err != nil {
		return CommitResult{}, err
	}
	res := CommitResult{Sequence: own.Sequence}
	conf, done, err := openConf(o.Card)
	if err != nil {
		return res, err
	}
	defer done()
	state, err := conf.State()
	if err != nil {
		return res, err
	}
	switch {
	case state.Active.Release == own:
		res.Slot, res.Committed = state.Active.Slot, true
		return res, count(ctx, o, own.Sequence)
	case state.Trial == nil || state.Trial.Release != own:
		return res, &card.Error{Reason: card.ReasonSlotUnknown, Detail: fmt.Sprintf("this is release %d; the card knows %s", own.Sequence, state)}
	}
	res.Slot = state.Trial.Slot
	if err := healthy(ctx, o); err != nil {
		if ctx.Err() != nil {
			return res, err
		}
		res.Restart = true
		if state.Trial.Attempts >= card.MaxAttempts {
			res.Back = true
			err = errors.Join(err, conf.Drop(card.ReasonTrialUnhealthy))
		}
		return res, err
	}
	if _, err := conf.Commit(); err != nil {
		return res, err
	}
	res.Committed, res.Changed = true, true
	return res, raise(ctx, o.Counter, own.Sequence)
}

// count raises the counter to an active release, which the health gate may not have seen.
func count(ctx context.Context, o CommitOptions, sequence uint64) error {
	if o.Counter == nil {
		return nil
	}
	v, err := o.Counter.Value(ctx)
	if err != nil {
		return refuse(ReasonCounter, "%w", err)
	}
	if v < sequence {
		if err := healthy(ctx, o); err != nil {
			return err
		}
	}
	return raise(ctx, o.Counter, sequence)
}

func raise(ctx context.Context, c Counter, to uint64) error {
	if c == nil {
		return nil
	}
	if err := c.Raise(ctx, to); err != nil {
		return refuse(ReasonCounter, "%w", err)
	}
	return nil
}

// healthy returns when every check has held for o.Stable.
func healthy(ctx context.Context, o CommitOptions) error {
	begin := o.Clock.Now()
	since, last := begin, "-"
	for {
		missing := look(ctx, o.Checks)
		now := o.Clock.Now()
		if line := strings.Join(missing, "; "); line != last && o.Waiting != nil {
			o.Waiting(missing)
			last = line
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case len(missing) > 0:
			since = now
		case now.Sub(since) >= o.Stable:
			return nil
		}
		if now.Sub(begin) >= o.Timeout {
			if len(missing) == 0 {
				missing = []string{fmt.Sprintf("not stable for %s", o.Stable)}
			}
			return refuse(ReasonUnhealthy, "after %s: %s", o.Timeout, strings.Join(missing, "; "))
		}
		select {
		case <-o.Clock.After(o.Every):
		case <-ctx.Done():
		}
	}
}

// checkLimit is how long one check may take.
const checkLimit = 5 * time.Second

func look(ctx context.Context, checks []Check) (missing []string) {
	for _, c := range checks {
		one, cancel := context.WithTimeout(ctx, checkLimit)
		if err := c.Run(one); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", c.Name, err))
		}
		cancel()
	}
	return missing
}

// Abort takes back a release on trial. running says that it is the one in use:
// then the machine has to start again.
func Abort(o Options) (running bool, err error) {
	own, err := runningRelease(o.Running)
	if err != nil {
		return false, err
	}
	conf, done, err := openConf(o.Card)
	if err != nil {
		return false, err
	}
	defer done()
	state, err := conf.State()
	if err != nil {
		return false, err
	}
	if state.Trial == nil {
		return false, refuse(ReasonNoTrial, "%s", state)
	}
	return state.Trial.Release == own, conf.Drop(card.ReasonTrialAborted)
}

// Status is what the card says of its slots.
type Status struct {
	Running     Release  `json:"running"`
	Active      Release  `json:"active"`
	Trial       *Release `json:"trial"`
	Next        string   `json:"next"` // slot that the firmware starts
	LastFailure string   `json:"last_failure,omitempty"`
}

// Release is a release as reports show it.
type Release struct {
	Slot     card.Slot `json:"slot"`
	Sequence uint64    `json:"sequence"`
	Root     string    `json:"root_hash"`
	Attempts int       `json:"attempts,omitempty"`
}

// ReadStatus reads it; nothing is written.
func ReadStatus(o Options) (Status, error) {
	conf, done, err := openConf(o.Card)
	if err != nil {
		return Status{}, err
	}
	defer done()
	s, err := conf.State()
	if err != nil {
		return Status{}, err
	}
	h := o.Running
	st := Status{Running: Release{Slot: h.Slot, Sequence: h.Sequence, Root: h.RootHash, Attempts: h.Attempt},
		Active: shown(s.Active, 0), LastFailure: s.LastFailure}
	if s.Trial != nil {
		t := shown(s.Trial.Installed, s.Trial.Attempts)
		st.Trial = &t
	}
	a, err := conf.Autoboot()
	if err != nil {
		return st, err
	}
	slot, err := a.Slot()
	st.Next = string(slot)
	return st, err
}

func shown(i card.Installed, attempts int) Release {
	return Release{Slot: i.Slot, Sequence: i.Sequence, Root: fmt.Sprintf("%x", i.Root), Attempts: attempts}
}
