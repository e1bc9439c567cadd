package policy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/internal/config"
)

func parse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const rebootRule = `rules:
  - name: fatal
    when: findings.exists(f, f.class == "fatal" && f.age < duration("1m"))
    then: [report, reboot]
    hold: 10s
    cooldown: 2m
`

func TestBuiltinPolicyIsValidAndHarmless(t *testing.T) {
	p := Default()
	if len(p.Rules) == 0 {
		t.Fatal("it has no rule")
	}
	for _, r := range p.Rules {
		if r.Power() || r.Has(Quarantine) {
			t.Errorf("rule %s does what no operator has asked for: %v", r.Name, r.Then)
		}
	}
	honest := Claims{State: "trusted", StateAge: time.Hour, Tier: "T0", Session: "s", SessionAge: time.Hour, Challenges: 900,
		Agent: true, Gateway: true, Carrier: true, Tasks: []string{"t"}}
	for _, o := range p.Evaluate(&honest) {
		if o.True || o.Err != nil {
			t.Errorf("an honest PC makes %s fire (%v)", o.Rule.Name, o.Err)
		}
	}
}

// What the built-in policy does stands in the table that is its test, too.
func TestBuiltinPolicyCases(t *testing.T) {
	cases, err := LoadCases(filepath.Join("testdata", "default_cases.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	fired := map[string]bool{}
	for _, r := range Default().Test(cases) {
		if !r.OK {
			t.Errorf("%s: %s", r.Name, r.Problem)
		}
		for _, f := range r.Fired {
			fired[f] = true
		}
	}
	for _, r := range Default().Rules {
		if !fired[r.Name] {
			t.Errorf("no case makes %s fire", r.Name)
		}
	}
}

func TestMistakesAreNamedWithLineAndAdvice(t *testing.T) {
	rule := func(when, then, more string) string {
		return "rules:\n  - name: a\n    when: " + when + "\n    then: " + then + "\n" + more
	}
	deep := "'" + strings.Repeat("!(", 40) + "banned" + strings.Repeat(")", 40) + "'"
	for _, tc := range []struct{ name, text, line, want string }{
		{"unknown claim", rule(`stat == "x"`, "[report]", ""), "p.yaml:3", "undeclared reference to 'stat'"},
		{"unknown field of a finding", rule(`findings.exists(f, f.clas == "x")`, "[report]", ""), "p.yaml:3", "undefined field 'clas'"},
		{"wrong type", rule(`failures == "3"`, "[report]", ""), "p.yaml:3", "no matching overload"},
		{"not a condition", rule(`state`, "[report]", ""), "p.yaml:3", "does not say yes or no"},
		{"not CEL", rule(`state ==`, "[report]", ""), "p.yaml:3", "Syntax error"},
		{"too costly", rule(`findings.all(a, findings.all(b, findings.all(c, a.probe == b.probe)))`, "[report]", ""), "p.yaml:3", "steps, at most 50000"},
		{"too long", rule(strings.Repeat("banned || ", 300)+"banned", "[report]", ""), "p.yaml:3", "at most 2048"},
		{"too deep", rule(deep, "[report]", ""), "p.yaml:3", "recursion"},
		{"unknown action", rule("banned", "[explode]", ""), "p.yaml:4", `"explode" is not an action`},
		{"trust is no action", rule("banned", "[trust]", ""), "p.yaml:4", `"trust" is not an action`},
		{"action twice", rule("banned", "[report, report]", ""), "p.yaml:4", "twice"},
		{"reboot and power_off", rule("banned", "[reboot, power_off]", ""), "p.yaml:4", "exclude each other"},
		{"no action", rule("banned", "[]", ""), "p.yaml:4", "not a list of actions"},
		{"unknown key", rule("banned", "[report]", "    holt: 3s\n"), "p.yaml:5", "unknown key; known here: cooldown, dry_run, hold, name, then, when"},
		{"no unit", rule("banned", "[report]", "    hold: 3\n"), "p.yaml:5", "with its unit"},
		{"hold too long", rule("banned", "[report]", "    hold: 2h\n"), "p.yaml:5", "not a time from 0s to 1h0m0s"},
		{"cooldown too short", rule("banned", "[report]", "    cooldown: 1ms\n"), "p.yaml:5", "not a time from 1s"},
		{"dry_run as word", rule("banned", "[report]", "    dry_run: \"yes\"\n"), "p.yaml:5", "true or false"},
		{"key twice", rule("banned", "[report]", "    when: banned\n"), "p.yaml:5", "given twice"},
		{"name twice", rule("banned", "[report]", "  - {name: a, when: banned, then: [report]}\n"), "p.yaml:5", "second rule of this name"},
		{"name with a space", "rules:\n  - {name: a b, when: banned, then: [report]}\n", "p.yaml:2", "is not a name"},
		{"no condition", "rules:\n  - {name: a, then: [report]}\n", "p.yaml:2", "when: is missing"},
		{"anchor", "rules: &x\n  - {name: a, when: banned, then: [report]}\n", "p.yaml:1", "anchors"},
		{"no rules", "{}\n", "p.yaml:1", "rules: is missing"},
		{"not a policy", "[]\n", "p.yaml:1", "key: value"},
		{"unknown section", "rules: []\ndefaults: {}\n", "p.yaml:2", "unknown key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("p.yaml", []byte(tc.text))
			var e *config.Error
			if !errors.As(err, &e) {
				t.Fatalf("not a typed error: %v", err)
			}
			if e.Advice == "" {
				t.Error("no advice")
			}
			for _, want := range []string{tc.line, tc.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
		})
	}
	for name, text := range map[string]string{"empty": "", "comment": "# x\n", "two documents": "rules: []\n---\nrules: []\n", "huge": strings.Repeat("#\n", MaxSize)} {
		if _, err := Parse("p.yaml", []byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDefaultsOfARule(t *testing.T) {
	p := parse(t, "rules:\n  - {name: a, when: banned, then: [report]}\n  - {name: b, when: banned, then: [power_off]}\n")
	if a, b := p.Rules[0], p.Rules[1]; a.Cooldown != DefaultCooldown || b.Cooldown != PowerCooldown || a.Hold != 0 || a.DryRun || b.Line != 3 {
		t.Errorf("%+v %+v", a, b)
	}
}

// clocked steps a tracker of one policy through time.
type clocked struct {
	*Tracker
	now time.Time
}

func (c *clocked) step(after time.Duration, claims Claims) (names []string) {
	c.now = c.now.Add(after)
	fired, _, _ := c.Step(c.now, &claims)
	for _, f := range fired {
		names = append(names, f.Rule.Name)
	}
	return names
}

func newClocked(p *Policy, last time.Time) *clocked {
	return &clocked{NewTracker(p, func(string) time.Time { return last }), time.Unix(1000, 0)}
}

func fatal() Claims {
	return Claims{State: "suspect", Findings: []Finding{{Probe: "ktext", Reason: "ktext-page", Class: "fatal"}}}
}

func TestHoldMeansWithoutABreak(t *testing.T) {
	c := newClocked(parse(t, rebootRule), time.Time{})
	for i, s := range []struct {
		after time.Duration
		c     Claims
		fires bool
	}{
		{0, fatal(), false}, {9 * time.Second, fatal(), false}, {0, Claims{State: "trusted"}, false},
		{5 * time.Second, fatal(), false}, {9 * time.Second, fatal(), false}, {time.Second, fatal(), true},
	} {
		if got := c.step(s.after, s.c); (len(got) == 1) != s.fires {
			t.Errorf("step %d fired %v", i, got)
		}
	}
}

func TestCooldownAndWhatFiresAgain(t *testing.T) {
	p := parse(t, `rules:
  - {name: tell, when: state == "suspect", then: [report], cooldown: 1m}
  - {name: down, when: state == "suspect", then: [reboot], cooldown: 2m}
`)
	c := newClocked(p, time.Time{})
	bad, good := Claims{State: "suspect"}, Claims{State: "trusted"}
	for i, s := range []struct {
		after time.Duration
		c     Claims
		want  []string
	}{
		{0, bad, []string{"tell", "down"}},
		{time.Second, bad, nil},
		{time.Second, good, nil},
		{time.Second, bad, nil},                   // true anew, within both cooldowns
		{58 * time.Second, bad, []string{"tell"}}, // fires when its cooldown ends
		{58 * time.Second, bad, nil},
		{time.Second, bad, []string{"down"}},      // the PC is still there
		{10 * time.Minute, bad, []string{"down"}}, // a report is made once
	} {
		if got := c.step(s.after, s.c); !slices.Equal(got, s.want) {
			t.Errorf("step %d fired %v, want %v", i, got, s.want)
		}
	}
	// A new session is a new beginning for the rule, not for its cooldown.
	c.Session()
	if got := c.step(time.Second, bad); !slices.Equal(got, []string{"tell"}) {
		t.Errorf("in the new session: %v", got)
	}
}

func TestCooldownOutlivesTheProcessAndTheClock(t *testing.T) {
	p := parse(t, strings.ReplaceAll(rebootRule, "hold: 10s", "hold: 0s"))
	c := newClocked(p, time.Unix(1000, 0).Add(-time.Minute)) // fired a minute before the restart
	if got := c.step(0, fatal()); got != nil {
		t.Errorf("fired within the cooldown of an earlier life: %v", got)
	}
	if got := c.step(time.Minute, fatal()); len(got) != 1 {
		t.Error("does not fire when it ends")
	}
	c = newClocked(p, time.Unix(9000, 0)) // recorded by a clock that was ahead
	c.step(0, fatal())
	if got := c.step(2*time.Minute, fatal()); len(got) != 1 {
		t.Error("a firing in the future puts the rule out of force")
	}
}

func TestNextTellsWhenToLookAgain(t *testing.T) {
	p := parse(t, rebootRule)
	tr := NewTracker(p, func(string) time.Time { return time.Time{} })
	now, c := time.Unix(1000, 0), fatal()
	if _, _, next := tr.Step(now, &c); !next.Equal(now.Add(10 * time.Second)) {
		t.Errorf("hold: next at %v", next)
	}
	if _, _, next := tr.Step(now.Add(10*time.Second), &c); !next.Equal(now.Add(10*time.Second + 2*time.Minute)) {
		t.Errorf("cooldown: next at %v", next)
	}
	if _, _, next := tr.Step(now.Add(11*time.Second), &Claims{State: "trusted"}); !next.IsZero() {
		t.Errorf("nothing is due, but at %v", next)
	}
}

// A condition without an answer does not fire, and is told once.
func TestConditionWithoutAnAnswerDoesNotFire(t *testing.T) {
	p := parse(t, "rules:\n  - {name: a, when: 'findings[0].class == \"fatal\"', then: [power_off]}\n")
	tr := NewTracker(p, func(string) time.Time { return time.Time{} })
	for i, want := range []int{1, 0, 0} {
		fired, failed, _ := tr.Step(time.Unix(int64(i), 0), &Claims{State: "trusted"})
		if len(fired) != 0 || len(failed) != want {
			t.Errorf("step %d: %v %v", i, fired, failed)
		}
	}
	c := fatal()
	if fired, failed, _ := tr.Step(time.Unix(9, 0), &c); len(fired) != 1 || len(failed) != 0 {
		t.Errorf("with a finding: %v %v", fired, failed)
	}
}

// Whatever it is asked, an evaluation ends within the cost that was promised.
func TestEvaluationIsBoundedAtTheWorstClaims(t *testing.T) {
	worst := Claims{State: "suspect"}
	for range MaxFindings {
		worst.Findings = append(worst.Findings, Finding{Probe: strings.Repeat("a", MaxText), Reason: strings.Repeat("a", MaxText), Class: "fatal", Detail: strings.Repeat("a", MaxText)})
		worst.Tasks = append(worst.Tasks, strings.Repeat("a", MaxText))
	}
	p := parse(t, `rules:
  - {name: a, when: 'findings.exists(f, f.detail.contains("b") || f.reason.startsWith("b"))', then: [report]}
  - {name: b, when: 'findings.filter(f, f.class == "fatal").size() > 63', then: [report]}
`)
	for _, o := range p.Evaluate(&worst) {
		if o.Err != nil {
			t.Errorf("%s: %v", o.Rule.Name, o.Err)
		}
	}
}

func TestClaimsSurviveTheJournal(t *testing.T) {
	want := Claims{State: "suspect", StateAge: time.Second, Reason: "r", Tier: "T0", Posture: "none", Session: "s", SessionAge: time.Minute, Image: "i",
		Version: 3, LabImage: true, Challenges: 4, Failures: 1, Drift: "soft", Warnings: []string{"w"}, Agent: true, Gateway: true, Carrier: true,
		LinkLosses: 2, Tasks: []string{"t"}, Violations: 7, Banned: true, Findings: []Finding{{"p", "r", "soft", "d", 3 * time.Second}}}
	v := reflect.ValueOf(want)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("the test leaves %s out", v.Type().Field(i).Name)
		}
	}
	if len(variables) != v.NumField() {
		t.Errorf("%d claims, %d of them for rules", v.NumField(), len(variables))
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Claims
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if y, err := ParseClaims(b); err != nil || !reflect.DeepEqual(*y, want) {
		t.Errorf("as YAML: %+v, %v", y, err)
	}
}

func TestBadClaimsAreRefused(t *testing.T) {
	for _, text := range []string{"state: fine", "stat: unknown", "failures: -1", "findings: [{class: bad}]", "findings: [{class: soft, age: -1s}]",
		"image: " + strings.Repeat("x", MaxText+1), "session_age: 3", "{", strings.Repeat("#", MaxSize+1)} {
		if _, err := ParseClaims([]byte(text)); err == nil {
			t.Errorf("%.40q: accepted", text)
		}
	}
	if c, err := ParseClaims(nil); err != nil || c.State != "unknown" {
		t.Errorf("no claims: %+v %v", c, err)
	}
}

func TestCasesTellWhatIsWrong(t *testing.T) {
	p := parse(t, rebootRule)
	for _, tc := range []struct{ name, text, want string }{
		{"right", "{name: x, claims: {findings: [{class: fatal}]}, for: 10s, expect: [fatal], actions: [reboot, report]}", ""},
		{"hold not over", "{name: x, claims: {findings: [{class: fatal}]}, for: 9s, expect: [fatal]}", "fired []"},
		{"too old", "{name: x, claims: {findings: [{class: fatal, age: 1m}]}, for: 10s, expect: []}", ""},
		{"other actions", "{name: x, claims: {findings: [{class: fatal}]}, for: 10s, expect: [fatal], actions: [report]}", "actions [reboot report]"},
		{"unknown rule", "{name: x, claims: {}, expect: [other]}", `no rule "other"`},
	} {
		cases, err := ParseCases("c.yaml", []byte("cases: ["+tc.text+"]"))
		if err != nil {
			t.Fatal(err)
		}
		r := p.Test(cases)[0]
		if r.OK != (tc.want == "") || !strings.Contains(r.Problem, tc.want) {
			t.Errorf("%s: %+v", tc.name, r)
		}
	}
	for _, text := range []string{"", "cases: []", "cases: [{name: x, claims: {}}]", "cases: [{claims: {}, expect: []}]", "cases: [{name: x, expect: [], claims: {x: 1}}]", "case: []"} {
		if _, err := ParseCases("c.yaml", []byte(text)); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}

func TestExplainShowsEachPart(t *testing.T) {
	p := parse(t, `rules:
  - {name: a, when: 'state == "suspect" && (banned || failures > 2)', then: [report]}
  - {name: b, when: 'findings[0].class == "fatal" || banned', then: [report], dry_run: true}
`)
	e := p.Explain(&Claims{State: "suspect", Failures: 3})
	if !e[0].True || !slices.Equal(e[0].Parts, []Part{{`state == "suspect"`, "true"}, {"banned", "false"}, {"failures > 2", "true"}}) {
		t.Errorf("%+v", e[0])
	}
	if e[1].True || e[1].Error == "" || !strings.Contains(e[1].Parts[0].Value, "index out of bounds") || !e[1].DryRun {
		t.Errorf("%+v", e[1])
	}
}

func TestLoadReadsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte(DefaultText()), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := Load(file); err != nil || p.Name != file {
		t.Errorf("%v %v", p, err)
	}
	if _, err := Load(file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(DefaultText()))
	f.Add([]byte(rebootRule))
	f.Add([]byte("rules: [{name: a, when: 'findings.map(f, f.age)[0] > duration(\"1s\")', then: [reboot], dry_run: true}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("rules: [{when: !!int 3}, 3, {then: {a: b}}]"))
	claims := fatal()
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse("f.yaml", b)
		if (p == nil) == (err == nil) {
			t.Fatal("neither a value nor an error")
		}
		if p == nil {
			return
		}
		for _, r := range p.Rules {
			if r.Name == "" || len(r.Then) == 0 || r.cond == nil || r.Cooldown < MinCooldown || r.Hold < 0 {
				t.Fatalf("an invalid rule exists: %+v", r)
			}
		}
		p.Evaluate(&claims)
		p.Explain(&claims)
	})
}

func FuzzParseClaims(f *testing.F) {
	f.Add([]byte(`{"state":"suspect","findings":[{"probe":"p","reason":"r","class":"soft","age":"3s"}]}`))
	f.Add([]byte("state: trusted\nsession_age: 5m\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseClaims(b); err == nil && c.Check() != nil {
			t.Fatalf("invalid claims exist: %+v", c)
		}
	})
}

func FuzzParseCases(f *testing.F) {
	f.Add([]byte("cases: [{name: x, claims: {state: suspect}, for: 3s, expect: [suspect], actions: [report]}]"))
	p := Default()
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCases("f.yaml", b); err == nil {
			p.Test(c)
		}
	})
}

func BenchmarkEvaluateDefault(b *testing.B) {
	p, c := Default(), fatal()
	for b.Loop() {
		p.Evaluate(&c)
	}
}

// A policy that is changed while a rule holds: what stands there as before goes on, what
// was changed begins anew, and no cooldown ends early.
func TestTrackerUnderAnotherPolicy(t *testing.T) {
	never := func(string) time.Time { return time.Time{} }
	at := time.Unix(1_800_000_000, 0)
	c := Claims{Banned: true}
	tr := NewTracker(parse(t, "rules:\n  - {name: fired, when: banned, then: [report], cooldown: 1h}\n  - {name: holds, when: banned, then: [report], hold: 1m}\n  - {name: other, when: banned, then: [report], hold: 1m}\n"), never)
	if f, _, _ := tr.Step(at, &c); len(f) != 1 || f[0].Rule.Name != "fired" {
		t.Fatalf("%v", f)
	}
	tr = tr.With(parse(t, "# a comment\nrules:\n  - {name: holds, when: banned, then: [report], hold: 1m}\n  - {name: other, when: banned, then: [report], hold: 59s}\n  - {name: fired, when: 'banned || carrier', then: [report], cooldown: 1h}\n"), never)
	var names []string
	for s := range 3 {
		f, _, _ := tr.Step(at.Add(time.Duration(59+s)*time.Second), &c)
		for _, x := range f {
			names = append(names, x.Rule.Name)
		}
	}
	if len(names) != 1 || names[0] != "holds" {
		t.Errorf("fired: %v, want the rule that was not changed, a minute after it became true", names)
	}
	if f, _, _ := tr.Step(at.Add(time.Hour), &c); len(f) != 2 {
		t.Errorf("after an hour: %v", f)
	}
}
