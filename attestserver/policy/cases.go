package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"portcullis/internal/config"
)

// MaxCases bounds a table of cases.
const MaxCases = 256

// Case is one row of a table for `policy test`: claims that stay as they are for a
// while, and what must follow.
type Case struct {
	Name   string
	Claims Claims
	For    time.Duration // how long the claims stay so
	Expect []string      // rules that fire, in the order of the policy
	// Actions, if given, are all that those rules do, each once, sorted; what a rule
	// does in a dry run does not count.
	Actions []Action
	checks  bool
}

type fileCase struct {
	Name    string     `yaml:"name"`
	Claims  fileClaims `yaml:"claims"`
	For     span       `yaml:"for"`
	Expect  *[]string  `yaml:"expect"`
	Actions *[]Action  `yaml:"actions"`
}

// LoadCases reads a table of cases.
func LoadCases(path string) ([]Case, error) {
	b, err := Read(path)
	if err != nil {
		return nil, fmt.Errorf("policy cases: %w", err)
	}
	return ParseCases(path, b)
}

// ParseCases reads the text b of a table; name stands for the file in errors.
func ParseCases(name string, b []byte) ([]Case, error) {
	if _, err := document(name, b); err != nil {
		return nil, err
	}
	var file struct {
		Cases []fileCase `yaml:"cases"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, &config.Error{File: name, Problem: strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	if len(file.Cases) == 0 || len(file.Cases) > MaxCases {
		return nil, &config.Error{File: name, Key: "cases", Problem: fmt.Sprintf("is not a list of 1 to %d cases", MaxCases)}
	}
	var out []Case
	for i, f := range file.Cases {
		c := Case{Name: f.Name, For: time.Duration(f.For)}
		key := fmt.Sprintf("cases[%d]", i)
		if f.Name == "" || f.Expect == nil || c.For < 0 || c.For > MaxHold {
			return nil, &config.Error{File: name, Key: key, Problem: "has no name, no expect, or a time for that is not 0 to " + MaxHold.String(),
				Advice: "write expect: [] where no rule fires"}
		}
		if err := c.Claims.from(f.Claims); err != nil {
			return nil, &config.Error{File: name, Key: key, Problem: err.Error()}
		}
		c.Expect = *f.Expect
		if f.Actions != nil {
			c.Actions, c.checks = *f.Actions, true
		}
		out = append(out, c)
	}
	return out, nil
}

// CaseResult is what became of one case.
type CaseResult struct {
	Name    string   `json:"name"`
	OK      bool     `json:"ok"`
	Fired   []string `json:"fired"`
	Actions []Action `json:"actions"`
	Problem string   `json:"problem,omitempty"`
}

// Test plays the cases: each begins with rules that have never fired.
func (p *Policy) Test(cases []Case) (out []CaseResult) {
	for _, c := range cases {
		out = append(out, p.test(c))
	}
	return out
}

func (p *Policy) test(c Case) CaseResult {
	r := CaseResult{Name: c.Name, Fired: []string{}, Actions: []Action{}}
	for _, name := range c.Expect {
		if !slices.ContainsFunc(p.Rules, func(x Rule) bool { return x.Name == name }) {
			r.Problem = fmt.Sprintf("the policy has no rule %q", name)
			return r
		}
	}
	t := NewTracker(p, func(string) time.Time { return time.Time{} })
	start := time.Unix(1_000_000_000, 0)
	var fired []Firing
	for _, at := range []time.Duration{0, c.For} {
		f, failed, _ := t.Step(start.Add(at), &c.Claims)
		fired = append(fired, f...)
		for _, o := range failed {
			r.Problem = fmt.Sprintf("rule %s has no answer: %v", o.Rule.Name, o.Err)
		}
	}
	for i := range p.Rules {
		rule := &p.Rules[i]
		if !slices.ContainsFunc(fired, func(f Firing) bool { return f.Rule == rule }) {
			continue
		}
		r.Fired = append(r.Fired, rule.Name)
		for _, a := range rule.Then {
			if !rule.DryRun && !slices.Contains(r.Actions, a) {
				r.Actions = append(r.Actions, a)
			}
		}
	}
	slices.Sort(r.Actions)
	want := slices.Sorted(slices.Values(c.Expect))
	actions := slices.Sorted(slices.Values(c.Actions))
	switch {
	case r.Problem != "":
	case !slices.Equal(slices.Sorted(slices.Values(r.Fired)), want):
		r.Problem = fmt.Sprintf("fired %v, expected %v", r.Fired, c.Expect)
	case c.checks && !slices.Equal(r.Actions, actions):
		r.Problem = fmt.Sprintf("actions %v, expected %v", r.Actions, actions)
	}
	r.OK = r.Problem == ""
	return r
}
