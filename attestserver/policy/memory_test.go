package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// What a rule said of claims stands for as long as nothing that it reads has changed: over
// random claims a Tracker does the same as one that asks every rule each time.
func TestTrackerThatRemembersDoesAsOneThatAsks(t *testing.T) {
	never := func(string) time.Time { return time.Time{} }
	text := "rules:\n"
	for i, when := range []string{
		`state == "suspect"`, `state != "trusted" && state_age > duration("3s")`, `size(tasks) > 1`, `"b" in tasks`, `banned || !carrier`,
		`findings.exists(f, f.reason == "r1" && f.age > duration("2s"))`, `findings.exists(state, .state == "suspect" && state.class == "soft")`,
		`warnings[1] == "w"`, `challenges > 3 && failures < 5`, `session_age > duration("40s")`, `true`, `size(findings) > 0 && findings[0].probe == "hw"`,
	} {
		text += fmt.Sprintf("  - {name: r%d, when: '%s', then: [report], hold: %ds, cooldown: 2s}\n", i, when, i%3)
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := parse(t, text)
		ours, asks := NewTracker(p, never), NewTracker(p, never)
		c, now := Claims{State: "trusted"}, time.Unix(1_800_000_000, 0)
		for step := range 400 {
			switch r.IntN(12) {
			case 0:
				c.State = []string{"trusted", "suspect", "quarantined"}[r.IntN(3)]
			case 1:
				c.Tasks = [][]string{nil, {"a"}, {"a", "b"}, {"b"}}[r.IntN(4)]
			case 2:
				c.Findings = nil
			case 3:
				c.Findings = []Finding{{Probe: []string{"hw", "net"}[r.IntN(2)], Reason: fmt.Sprint("r", r.IntN(2)), Class: "soft"}}
			case 4:
				c.Warnings = [][]string{nil, {"v", "w"}, {"w"}, {"v", "v"}}[r.IntN(4)]
			case 5:
				c.Challenges, c.Failures = int64(r.IntN(6)), int64(r.IntN(6))
			case 6:
				c.Banned, c.Carrier = r.IntN(2) == 0, r.IntN(2) == 0
			case 7:
				ours.Session()
				asks.Session()
				c.SessionAge = 0
			case 8:
				ours, asks = ours.With(parse(t, text), never), asks.With(parse(t, text), never)
			}
			passed := time.Duration(r.IntN(3)) * 500 * time.Millisecond
			now, c.StateAge, c.SessionAge = now.Add(passed), c.StateAge+passed, c.SessionAge+passed
			c.Findings = append([]Finding(nil), c.Findings...)
			for i := range c.Findings {
				c.Findings[i].Age += passed
			}
			for i := range asks.rules {
				asks.rules[i].said = nil
			}
			fired, failed, next := ours.Step(now, &c)
			wantFired, wantFailed, wantNext := asks.Step(now, &c)
			if names(fired) != names(wantFired) || len(failed) != len(wantFailed) || !next.Equal(wantNext) {
				t.Fatalf("seed %d, step %d: fired %s, %d failed, next %v; who asks each time: %s, %d, %v",
					seed, step, names(fired), len(failed), next, names(wantFired), len(wantFailed), wantNext)
			}
		}
	}
}

func names(fired []Firing) (s string) {
	for _, f := range fired {
		s += " " + f.Rule.Name
	}
	return s
}

// Each claim that a rule names is one of which a change is seen.
func TestEveryClaimThatIsNamedIsRead(t *testing.T) {
	for i, v := range variables {
		for _, form := range []string{"%s == %s", ".%s == %s", "[1].exists(x, %s == .%s)"} {
			c, err := compile(fmt.Sprintf(form, v.name, v.name))
			if err != nil {
				t.Fatal(v.name, err)
			}
			if !reflect.DeepEqual(c.reads, []int{i}) {
				t.Errorf(form+" reads %v, not %d", v.name, v.name, c.reads, i)
			}
		}
	}
}

// BenchmarkStepDefault is one more good answer under the default policy.
func BenchmarkStepDefault(b *testing.B) {
	tr := NewTracker(Default(), func(string) time.Time { return time.Time{} })
	c, now := Claims{State: "trusted", Tier: "T1", Session: "s", Agent: true, Gateway: true, Carrier: true}, time.Unix(1_800_000_000, 0)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Second)
		c.StateAge, c.SessionAge, c.Challenges = c.StateAge+time.Second, c.SessionAge+time.Second, c.Challenges+1
		tr.Step(now, &c)
	}
}
