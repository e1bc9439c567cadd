package luks2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
)

// maxDepth of nested JSON; json-c, which cryptsetup uses, has the same limit.
const maxDepth = 32

// parse reads the JSON of a header strictly: known fields in their exact spelling,
// each once. A field that two programs read differently could make one of them open
// what the other refused.
func parse(text []byte) (*metadata, error) {
	if len(text) == 0 || text[0] != '{' {
		return nil, refuse(ReasonMetadata, "the metadata are no JSON object")
	}
	if err := noDuplicates(text); err != nil {
		return nil, refuse(ReasonMetadata, "metadata: %w", err)
	}
	var top struct {
		Keyslots json.RawMessage `json:"keyslots"`
		Tokens   json.RawMessage `json:"tokens"`
		Segments json.RawMessage `json:"segments"`
		Digests  json.RawMessage `json:"digests"`
		Config   json.RawMessage `json:"config"`
	}
	if err := decode(text, &top); err != nil {
		return nil, refuse(ReasonMetadata, "metadata: %w", err)
	}
	m := new(metadata)
	if err := decode(top.Config, &m.config); err != nil {
		return nil, refuse(ReasonMetadata, "config: %w", err)
	}
	// A volume under re-encryption has keyslots and segments of other shapes; the
	// requirement says so, and must be the reason that is given.
	if err := m.config.Requirements.check(); err != nil {
		return nil, err
	}
	m.config.Requirements = nil
	var err error
	if m.keyslots, err = parseObjects[*keyslot](top.Keyslots, "keyslot"); err != nil {
		return nil, err
	}
	if m.segments, err = parseObjects[*segment](top.Segments, "segment"); err != nil {
		return nil, err
	}
	if m.digests, err = parseObjects[*digest](top.Digests, "digest"); err != nil {
		return nil, err
	}
	if m.tokens, err = numbered(top.Tokens, "token"); err != nil {
		return nil, err
	}
	return m, nil
}

// check refuses every requirement: none is understood here.
func (r requirements) check() error {
	for _, name := range r {
		if strings.Contains(name, "reencrypt") {
			return refuse(ReasonUnfinished, "the header requires %.40q: finish it with cryptsetup reencrypt --resume-only", name)
		}
	}
	if len(r) > 0 {
		return refuse(ReasonRequirement, "the header requires %.40q", r[0])
	}
	return nil
}

// numbered splits an object with the numbers 0 to 31 as names.
func numbered(raw json.RawMessage, what string) (map[int]json.RawMessage, error) {
	var objects map[string]json.RawMessage
	if err := json.Unmarshal(raw, &objects); err != nil || objects == nil {
		return nil, refuse(ReasonMetadata, "the %ss are no object", what)
	}
	out := make(map[int]json.RawMessage, min(len(objects), MaxSlots))
	for name, o := range objects {
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 || n >= MaxSlots || strconv.Itoa(n) != name {
			return nil, refuse(ReasonMetadata, "%s %.20q is not a number from 0 to %d", what, name, MaxSlots-1)
		}
		out[n] = o
	}
	return out, nil
}

func parseObjects[T *E, E any](raw json.RawMessage, what string) (map[int]T, error) {
	objects, err := numbered(raw, what)
	if err != nil {
		return nil, err
	}
	out := make(map[int]T, len(objects))
	for n, o := range objects {
		// Other types have other fields: the type is the reason to give, not them.
		var kind struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(o, &kind); err != nil {
			return nil, refuse(ReasonMetadata, "%s %d: %w", what, n, err)
		}
		switch want := map[string]string{"keyslot": "luks2", "segment": "crypt", "digest": "pbkdf2"}[what]; kind.Type {
		case want:
		case "reencrypt":
			return nil, refuse(ReasonUnfinished, "%s %d belongs to a re-encryption", what, n)
		default:
			return nil, refuse(ReasonUnsupported, "%s %d is of type %.40q, not %q", what, n, kind.Type, want)
		}
		v := T(new(E))
		if err := decode(o, v); err != nil {
			return nil, refuse(ReasonMetadata, "%s %d: %w", what, n, err)
		}
		out[n] = v
	}
	return out, nil
}

// decode is json.Unmarshal that wants every field in its exact spelling, all that
// are not optional, and no others.
func decode(raw json.RawMessage, v any) error {
	if err := exact(raw, reflect.TypeOf(v).Elem()); err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

func exact(raw json.RawMessage, t reflect.Type) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return err
	}
	known := 0
	for i := range t.NumField() {
		name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		value, there := fields[name]
		if !there {
			if options != "omitempty" {
				return fmt.Errorf("%q is missing", name)
			}
			continue
		}
		known++
		if t.Field(i).Type.Kind() == reflect.Struct {
			if err := exact(value, t.Field(i).Type); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if known != len(fields) {
		return fmt.Errorf("a field is not known")
	}
	return nil
}

// noDuplicates refuses names that stand twice in one object, and what is not one
// JSON value.
func noDuplicates(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := walk(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("something follows the object")
	}
	return nil
}

func walk(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	names := make(map[string]bool)
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			if names[name] {
				return fmt.Errorf("%.40q stands twice", name)
			}
			names[name] = true
		}
		if err := walk(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}
