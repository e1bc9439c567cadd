package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"portcullis/internal/strictjson"
)

// maxJSON bounds an index, a manifest or a configuration, in bytes.
const maxJSON = 4 << 20

// maxDepth is how deep JSON may be nested.
const maxDepth = 32

// decode reads one JSON value into v. Two readers that take different ones of two
// equal keys, or do not mind their case, could see different images: doubled keys
// are refused, in any case. Unknown keys are not: formats grow.
func decode(what string, data []byte, v any) error {
	if !utf8.Valid(data) {
		return refuse(ReasonFormat, "%s: not UTF-8", what)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := unique(dec, 0); err != nil {
		return refuse(ReasonFormat, "%s: %v", what, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return refuse(ReasonFormat, "%s: data behind the end", what)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return refuse(ReasonFormat, "%s: %v", what, err)
	}
	return nil
}

// unique reads one value and finds keys that are there twice.
func unique(dec *json.Decoder, depth int) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return errors.New("nested too deep")
	}
	seen := map[string]bool{}
	for dec.More() {
		if open == '{' {
			t, err := dec.Token()
			if err != nil {
				return err
			}
			key := strictjson.Fold(t.(string))
			if seen[key] {
				return errors.New("a key is there twice: " + key)
			}
			seen[key] = true
		}
		if err := unique(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}
