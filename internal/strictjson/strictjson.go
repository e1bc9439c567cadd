// Package strictjson reads and writes JSON that has one meaning and one form: what
// is signed is compared byte by byte with what its reader would write.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Decode reads one JSON value into v; unknown fields and data behind the value are
// errors. The caller bounds the length of data.
func Decode(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data behind the end")
	}
	return nil
}

// Compact encodes v without white space and without the escapes that json.Marshal
// makes for HTML.
func Compact(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Fold is key as encoding/json compares it with the name of a field that has no other spelling: letters that differ
// in their case alone are one, the long s and the sign of the kelvin among them, which have no other lower case.
func Fold(key string) string {
	return strings.Map(func(r rune) rune {
		for { // the runes of one letter are a ring; its smallest stands for all
			next := unicode.SimpleFold(r)
			if next <= r {
				return next
			}
			r = next
		}
	}, key)
}

// FirstDifference is the index of the first byte in which a and b differ: the length
// of the shorter one where it is the beginning of the other.
func FirstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
