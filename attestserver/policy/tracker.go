package policy

import (
	"slices"
	"time"
)

// Tracker gives the rules their sense of time: hold and cooldown. One goroutine
// owns it.
//
// A rule fires once each time that it becomes true and has stayed so for its
// hold, and never within its cooldown. One that became true within the cooldown and
// still is when that ends fires then. A rule that takes the PC down and is still
// true a cooldown after it fired, fires again: the PC is still there.
type Tracker struct {
	policy *Policy
	rules  []track
	before Claims // of the step before
}

type track struct {
	since time.Time // true since; zero while false
	fired bool      // since then
	last  time.Time // fired last, in any session
	erred bool      // had no answer last time
	said  *Outcome  // of the claims before; nil: it was not asked
}

// Firing is a rule that fired.
type Firing struct {
	Rule   *Rule
	Claims Claims
	Time   time.Time
}

// NewTracker begins with rules that were all false. last tells when a rule fired
// last in an earlier life, the zero time if it did not.
func NewTracker(p *Policy, last func(rule string) time.Time) *Tracker {
	t := &Tracker{policy: p, rules: make([]track, len(p.Rules))}
	for i := range t.rules {
		t.rules[i].last = last(p.Rules[i].Name)
	}
	return t
}

// With is t under another policy. A rule that stands there as before goes on as it
// was: writing a comment into a file must not delay what a rule waits for. One that
// was changed begins as false, and its cooldown goes on.
func (t *Tracker) With(p *Policy, last func(rule string) time.Time) *Tracker {
	out := NewTracker(p, last)
	for i := range p.Rules {
		for k := range t.policy.Rules {
			switch old, now := &t.policy.Rules[k], &p.Rules[i]; {
			case old.Name != now.Name:
			case old.same(now):
				out.rules[i] = t.rules[k]
				out.rules[i].said = nil
			case t.rules[k].last.After(out.rules[i].last):
				out.rules[i].last = t.rules[k].last
			}
		}
	}
	return out
}

// same tells whether two rules of one name ask and do the same.
func (r *Rule) same(o *Rule) bool {
	return r.When == o.When && slices.Equal(r.Then, o.Then) && r.Hold == o.Hold && r.Cooldown == o.Cooldown && r.DryRun == o.DryRun
}

// Session begins a new boot session: no rule has been true in it yet. Cooldowns go on.
func (t *Tracker) Session() {
	for i := range t.rules {
		t.rules[i] = track{last: t.rules[i].last}
	}
}

// Step asks the rules about the claims of now, each of which anything that it reads has
// changed: of the same it says the same. failed are the rules that have no
// answer since this step; next is when a step is due although nothing happens,
// the zero time if never.
func (t *Tracker) Step(now time.Time, c *Claims) (fired []Firing, failed []Outcome, next time.Time) {
	for i := range t.rules {
		k, r := &t.rules[i], &t.policy.Rules[i]
		if k.said == nil || r.cond.changed(&t.before, c) {
			o := r.ask(c)
			if o.Err != nil && !k.erred {
				failed = append(failed, o)
			}
			k.said, k.erred = &o, o.Err != nil
		}
		o := *k.said
		if !o.True {
			k.since, k.fired = time.Time{}, false
			continue
		}
		if k.since.IsZero() {
			k.since = now
		}
		if k.fired && !o.Rule.Power() {
			continue
		}
		due := k.since.Add(o.Rule.Hold)
		// A clock that was set back must not put a rule out of force.
		if k.last.After(now) {
			k.last = now
		}
		if ready := k.last.Add(o.Rule.Cooldown); !k.last.IsZero() && ready.After(due) {
			due = ready
		}
		if now.Before(due) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		k.fired, k.last = true, now
		fired = append(fired, Firing{o.Rule, *c, now})
		if again := now.Add(o.Rule.Cooldown); o.Rule.Power() && (next.IsZero() || again.Before(next)) {
			next = again
		}
	}
	t.before = *c
	return fired, failed, next
}
