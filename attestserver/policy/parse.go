package policy

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"portcullis/internal/config"
)

// MaxSize is the largest policy or table of cases that is read, in bytes.
const MaxSize = 64 << 10

// Builtin is the name of the default policy.
const Builtin = "built-in"

//go:embed default.yaml
var defaultText []byte

// DefaultText is the default policy as a file.
func DefaultText() string { return string(defaultText) }

// Default is the built-in policy.
func Default() *Policy {
	p, err := Parse(Builtin, defaultText)
	if err != nil {
		panic("the built-in policy: " + err.Error()) // its bytes are part of the program
	}
	return p
}

// Load reads and checks the policy at path. The error joins every mistake, each a
// *config.Error with line and advice.
func Load(path string) (*Policy, error) {
	b, err := Read(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return Parse(path, b)
}

// Read returns the content of a file, and no more of it than Parse needs to refuse it.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

// Parse checks the text b of a policy; name stands for the file in errors.
func Parse(name string, b []byte) (*Policy, error) {
	root, err := document(name, b)
	if err != nil {
		return nil, err
	}
	r := &reader{file: name}
	p := &Policy{Name: name}
	r.mapping(root, "", map[string]func(*yaml.Node){"rules": func(n *yaml.Node) { p.Rules = r.rules(n) }}, "rules")
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return p, nil
}

// document reads exactly one YAML document.
func document(name string, b []byte) (*yaml.Node, error) {
	if len(b) > MaxSize {
		return nil, &config.Error{File: name, Problem: fmt.Sprintf("the file is larger than %d bytes", MaxSize)}
	}
	var doc, extra yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &config.Error{File: name, Problem: "the file is empty", Advice: "see 'portcullis policy show' for an example"}
		}
		return nil, &config.Error{File: name, Problem: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	if err := dec.Decode(&extra); !errors.Is(err, io.EOF) {
		return nil, &config.Error{File: name, Problem: "more than one YAML document", Advice: "keep one"}
	}
	if len(doc.Content) != 1 {
		return nil, &config.Error{File: name, Problem: "the file is empty", Advice: "see 'portcullis policy show' for an example"}
	}
	return doc.Content[0], nil
}

type reader struct {
	file string
	errs []error
}

func (r *reader) fail(n *yaml.Node, key, problem, advice string) {
	r.errs = append(r.errs, &config.Error{File: r.file, Line: n.Line, Key: key, Problem: problem, Advice: advice})
}

// mapping hands each value of n to its setter. Anything unknown, twice, missing or
// shared by an anchor is a mistake.
func (r *reader) mapping(n *yaml.Node, where string, set map[string]func(*yaml.Node), required ...string) {
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		r.fail(n, where, "is not a list of 'key: value' lines", "write the keys "+known(set)+"; anchors are not allowed")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		name := strings.TrimPrefix(where+"."+k.Value, ".")
		switch f := set[k.Value]; {
		case f == nil:
			r.fail(k, name, "unknown key", "known here: "+known(set))
		case seen[k.Value]:
			r.fail(k, name, "given twice", "keep one of them")
		case v.Kind == yaml.AliasNode || v.Anchor != "":
			r.fail(v, name, "anchors and aliases are not allowed", "write the value out")
		default:
			f(v)
		}
		seen[k.Value] = true
	}
	for _, key := range required {
		if !seen[key] {
			r.fail(n, strings.TrimPrefix(where+"."+key, "."), "is missing", "add it: it has no default")
		}
	}
}

func known(set map[string]func(*yaml.Node)) string {
	names := make([]string, 0, len(set))
	for n := range set {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func (r *reader) rules(n *yaml.Node) []Rule {
	if n.Kind != yaml.SequenceNode || len(n.Content) > MaxRules {
		r.fail(n, "rules", fmt.Sprintf("is not a list of at most %d rules", MaxRules), "write '- name: …' for each rule")
		return nil
	}
	var out []Rule
	names := map[string]bool{}
	for i, e := range n.Content {
		rule := r.rule(e, fmt.Sprintf("rules[%d]", i))
		if rule.Name != "" && names[rule.Name] {
			r.fail(e, "rules."+rule.Name, "a second rule of this name", "give each rule a name of its own")
		}
		names[rule.Name] = true
		out = append(out, rule)
	}
	return out
}

var ruleName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,39}$`)

func (r *reader) rule(n *yaml.Node, where string) Rule {
	rule := Rule{Line: n.Line, Cooldown: -1}
	r.mapping(n, where, map[string]func(*yaml.Node){
		"name": func(n *yaml.Node) {
			if rule.Name = n.Value; n.Kind != yaml.ScalarNode || !ruleName.MatchString(n.Value) {
				rule.Name = ""
				r.fail(n, where+".name", fmt.Sprintf("%.50q is not a name", n.Value), "write 1 to 40 small letters, digits and dashes, a letter first")
			}
		},
		"when":     func(n *yaml.Node) { rule.When, rule.cond = r.when(n, where+".when") },
		"then":     func(n *yaml.Node) { rule.Then = r.then(n, where+".then") },
		"hold":     func(n *yaml.Node) { rule.Hold = r.duration(n, where+".hold", 0, MaxHold) },
		"cooldown": func(n *yaml.Node) { rule.Cooldown = r.duration(n, where+".cooldown", MinCooldown, MaxCooldown) },
		"dry_run": func(n *yaml.Node) {
			if rule.DryRun = n.Value == "true"; n.Tag != "!!bool" || (n.Value != "true" && n.Value != "false") {
				r.fail(n, where+".dry_run", fmt.Sprintf("%.50q is not true or false", n.Value), "write true or false")
			}
		},
	}, "name", "when", "then")
	if rule.Cooldown < 0 {
		rule.Cooldown = DefaultCooldown
		if rule.Power() {
			rule.Cooldown = PowerCooldown
		}
	}
	return rule
}

func (r *reader) when(n *yaml.Node, where string) (string, *condition) {
	const advice = "write a condition over the claims that 'portcullis policy show --claims' lists, such as state == \"suspect\""
	if n.Kind != yaml.ScalarNode || n.Value == "" {
		r.fail(n, where, "is not a condition", advice)
		return "", nil
	}
	c, err := compile(n.Value)
	if err != nil {
		problem := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "<input>:", "at ")), " ")
		r.fail(n, where, fmt.Sprintf("%.600s", problem), advice)
		return n.Value, nil
	}
	return n.Value, c
}

func (r *reader) then(n *yaml.Node, where string) (out []Action) {
	words := make([]string, len(Actions))
	for i, a := range Actions {
		words[i] = string(a)
	}
	advice := "write a list of " + strings.Join(words, ", ")
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		r.fail(n, where, "is not a list of actions", advice)
		return nil
	}
	for _, e := range n.Content {
		a := Action(e.Value)
		switch {
		case e.Kind != yaml.ScalarNode || !slices.Contains(Actions, a):
			r.fail(e, where, fmt.Sprintf("%.50q is not an action", e.Value), advice)
		case slices.Contains(out, a):
			r.fail(e, where, fmt.Sprintf("%s stands there twice", a), "keep one of them")
		default:
			out = append(out, a)
		}
	}
	if slices.Contains(out, Reboot) && slices.Contains(out, PowerOff) {
		r.fail(n, where, "reboot and power_off exclude each other", "keep one of them")
	}
	return out
}

func (r *reader) duration(n *yaml.Node, where string, lo, hi time.Duration) time.Duration {
	d, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || d < lo || d > hi {
		r.fail(n, where, fmt.Sprintf("%.50q is not a time from %s to %s", n.Value, lo, hi), "write it with its unit, such as 30s")
		return lo
	}
	return d
}
