package recipe

import (
	"errors"
	"io"
	"sort"
	"strconv"
	"strings"

	"bytes"

	"gopkg.in/yaml.v3"
)

// document is one recipe file before it is merged.
type document struct {
	file      string
	extends   string
	extendsAt Position
	root      *yaml.Node
}

// maxRecipe bounds a recipe file in bytes.
const maxRecipe = 1 << 20

// parse reads one YAML document and checks its schema line.
func parse(file string, b []byte) (*document, error) {
	d := &document{file: file}
	if len(b) > maxRecipe {
		return nil, errorf(Position{file, 0}, ReasonSyntax, "larger than %d bytes", maxRecipe)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, errorf(Position{file, yamlLine(err)}, ReasonSyntax, "not YAML: %v", err)
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errorf(Position{file, second.Line}, ReasonSyntax, "more than one YAML document")
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errorf(Position{file, 1}, ReasonSyntax, "a recipe is a mapping that begins with 'schema: %s'", Schema)
	}
	d.root = doc.Content[0]
	schema := false
	err := d.mapping(d.root, func(key string, at Position, v *yaml.Node) error {
		var err error
		switch key {
		case "schema":
			schema = v.Value == Schema
		case "extends":
			d.extendsAt = at
			d.extends, err = d.text(v)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !schema {
		return nil, errorf(Position{file, d.root.Line}, ReasonValue, "schema: must be %s", Schema)
	}
	return d, nil
}

func yamlLine(err error) int {
	_, rest, ok := strings.Cut(err.Error(), "line ")
	if !ok {
		return 0
	}
	num, _, _ := strings.Cut(rest, ":")
	n, _ := strconv.Atoi(num)
	return n
}

func (d *document) at(n *yaml.Node) Position { return Position{d.file, n.Line} }

// mapping calls f for every key; a key given twice, an alias or a merge is refused.
func (d *document) mapping(n *yaml.Node, f func(key string, at Position, v *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return errorf(d.at(n), ReasonSyntax, "expected 'key: value' lines")
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || v.Kind == yaml.AliasNode {
			return errorf(d.at(k), ReasonSyntax, "keys are plain words and values are written out")
		}
		if seen[k.Value] {
			return errorf(d.at(k), ReasonSyntax, "%s: is given twice", k.Value)
		}
		seen[k.Value] = true
		if err := f(k.Value, d.at(k), v); err != nil {
			return err
		}
	}
	return nil
}

func (d *document) text(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", errorf(d.at(n), ReasonSyntax, "expected one value")
	}
	return n.Value, nil
}

func (d *document) number(n *yaml.Node, lo, hi int) (int, error) {
	s, err := d.text(n)
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < lo || v > hi {
		return 0, errorf(d.at(n), ReasonValue, "%q must be a number from %d to %d", s, lo, hi)
	}
	return v, nil
}

// mode reads octal permission bits such as "0644".
func (d *document) mode(n *yaml.Node) (uint32, error) {
	s, err := d.text(n)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	if err != nil || v > 0o7777 {
		return 0, errorf(d.at(n), ReasonValue, "mode %q must be octal, for instance \"0644\"", s)
	}
	return uint32(v), nil
}

func (d *document) sequence(n *yaml.Node, f func(v *yaml.Node) error) error {
	if n.Kind != yaml.SequenceNode {
		return errorf(d.at(n), ReasonSyntax, "expected a list")
	}
	for _, v := range n.Content {
		if v.Kind == yaml.AliasNode {
			return errorf(d.at(v), ReasonSyntax, "values are written out, without aliases")
		}
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

// strings appends the values of a list of words to out, each checked by ok.
func (d *document) strings(n *yaml.Node, out *[]string, what string, ok func(string) bool) error {
	return d.sequence(n, func(v *yaml.Node) error {
		s, err := d.text(v)
		if err != nil {
			return err
		}
		if !ok(s) {
			return errorf(d.at(v), ReasonValue, "%q is not %s", s, what)
		}
		*out = append(*out, s)
		return nil
	})
}

func unknown(at Position, key string, known ...string) *Error {
	sort.Strings(known)
	return errorf(at, ReasonUnknown, "unknown key %q; there are: %s", key, strings.Join(known, ", "))
}
