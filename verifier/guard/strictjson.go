package guard

import (
	"bytes"
	"encoding/json"
	"io"
	"unicode/utf8"

	"portcullis/internal/strictjson"
)

// maxDepth of nested objects and lists in a body.
const maxDepth = 16

// object is a JSON object. Values are string, json.Number, bool, nil, []any and object.
type object map[string]any

// parseObject reads exactly one JSON object. Engines take the last of two equal
// keys, and keys in any case; here both are refused, so that there is one reading.
func parseObject(b []byte) (object, error) {
	if !utf8.Valid(b) {
		return nil, refuse(ReasonJSON, "not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := value(d, 0)
	if err != nil {
		return nil, err
	}
	o, ok := v.(object)
	if !ok {
		return nil, refuse(ReasonJSON, "not an object")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, refuse(ReasonJSON, "something follows the object")
	}
	return o, nil
}

func value(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, refuse(ReasonJSON, "nested more than %d deep", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, refuse(ReasonJSON, "%v", err)
	}
	switch t {
	case json.Delim('{'):
		return members(d, depth)
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := value(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		if err != nil {
			return nil, refuse(ReasonJSON, "%v", err)
		}
		return list, nil
	}
	return t, nil
}

func members(d *json.Decoder, depth int) (any, error) {
	o, folded := object{}, map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, refuse(ReasonJSON, "%v", err)
		}
		key := t.(string) // the decoder takes nothing else before a colon
		if f := strictjson.Fold(key); folded[f] {
			return nil, refuse(ReasonJSON, "the key %.80q is there twice", key)
		} else {
			folded[f] = true
		}
		v, err := value(d, depth+1)
		if err != nil {
			return nil, err
		}
		o[key] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, refuse(ReasonJSON, "%v", err)
	}
	return o, nil
}

// unset tells whether v says nothing: null, false, 0, "", and lists and objects of such.
func unset(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case json.Number:
		return v == "0"
	case []any:
		for _, x := range v {
			if !unset(x) {
				return false
			}
		}
		return true
	case object:
		for _, x := range v {
			if !unset(x) {
				return false
			}
		}
		return true
	}
	return false
}
