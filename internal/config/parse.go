package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"gopkg.in/yaml.v3"
)

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 1 << 20

// Error is one mistake in a file: where it stands, what is wrong, what to write instead.
type Error struct {
	File    string
	Line    int // 1 is the first; 0 where the mistake is not at one line
	Key     string
	Problem string
	Advice  string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Key != "" {
		fmt.Fprintf(&b, ": %s", e.Key)
	}
	fmt.Fprintf(&b, ": %s", e.Problem)
	if e.Advice != "" {
		fmt.Fprintf(&b, "; %s", e.Advice)
	}
	return b.String()
}

// Load reads and checks the file at path. The error joins every mistake found,
// each of type *Error, in the order of their lines.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: read %s: %w", path, err)
	}
	return Parse(path, b)
}

// Parse checks the text b; name stands for the file in errors.
func Parse(name string, b []byte) (*Config, error) {
	if len(b) > MaxSize {
		return nil, &Error{File: name, Problem: fmt.Sprintf("the file is larger than %d bytes", MaxSize)}
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &Error{File: name, Problem: "the file is empty", Advice: "see 'portcullis config check --help' for an example"}
		}
		return nil, &Error{File: name, Problem: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	var extra yaml.Node
	if err := dec.Decode(&extra); !errors.Is(err, io.EOF) {
		return nil, &Error{File: name, Problem: "more than one YAML document", Advice: "keep one"}
	}
	c := defaults()
	r := &reader{file: name}
	r.section("", doc.Content[0], root(c))
	r.check(c)
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return c, nil
}

// field reads one value, or says what it should be.
type field struct {
	key      string
	required bool
	set      func(n *yaml.Node) error
	sub      []field
}

// badValue is returned by setters: the advice says what to write instead.
type badValue struct{ problem, advice string }

func (e *badValue) Error() string { return e.problem }

type reader struct {
	file string
	errs []error
	line map[string]int // dotted key → line
}

func (r *reader) fail(line int, key, problem, advice string) {
	r.errs = append(r.errs, &Error{File: r.file, Line: line, Key: key, Problem: problem, Advice: advice})
}

func (r *reader) section(prefix string, n *yaml.Node, fields []field) {
	if r.line == nil {
		r.line = map[string]int{}
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		r.fail(n.Line, prefix, "anchors and aliases are not allowed", "write the values out")
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n.Line, prefix, "is not a section", "write 'key: value' lines below it")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		name := join(prefix, k.Value)
		f := lookup(fields, k.Value)
		switch {
		case f == nil:
			r.fail(k.Line, name, "unknown key", advise(k.Value, fields))
			continue
		case seen[k.Value]:
			r.fail(k.Line, name, "given twice", "keep one of them")
			continue
		}
		seen[k.Value] = true
		r.line[name] = k.Line
		if f.sub != nil {
			r.section(name, v, f.sub)
			continue
		}
		if v.Kind == yaml.AliasNode || v.Anchor != "" {
			r.fail(v.Line, name, "anchors and aliases are not allowed", "write the value out")
			continue
		}
		if err := f.set(v); err != nil {
			var bad *badValue
			if errors.As(err, &bad) {
				r.fail(v.Line, name, bad.problem, bad.advice)
			} else {
				r.fail(v.Line, name, err.Error(), "")
			}
		}
	}
	for _, f := range fields {
		if f.required && !seen[f.key] {
			r.fail(n.Line, join(prefix, f.key), "is missing", "add it: it has no default")
		}
	}
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

func lookup(fields []field, key string) *field {
	for i := range fields {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	return nil
}

// advise names the nearest known key, or all of them.
func advise(got string, fields []field) string {
	best, bestDistance := "", 4
	names := make([]string, 0, len(fields))
	for _, f := range fields {
		names = append(names, f.key)
		if d := distance(got, f.key); d < bestDistance {
			best, bestDistance = f.key, d
		}
	}
	if best != "" {
		return fmt.Sprintf("write %q", best)
	}
	return "known here: " + strings.Join(names, ", ")
}

// distance is the Levenshtein distance, for keys only.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			prev, row[j] = row[j], min(row[j]+1, row[j-1]+1, prev+cost)
		}
	}
	return row[len(b)]
}
