package approval

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// compact encodes v without the escapes that json.Marshal makes for HTML.
func compact(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// canonical reads data into v and compares it with what again makes of that:
// whatever a second reader could understand differently (unknown and doubled
// fields, other letter case, white space, bytes behind the end) is refused.
func canonical(data []byte, v any, again func() ([]byte, error)) error {
	if len(data) > MaxEnvelope {
		return refuse(ReasonMalformed, "%d bytes, at most %d are read", len(data), MaxEnvelope)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return refuse(ReasonMalformed, "not readable: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return refuse(ReasonMalformed, "data behind the end")
	}
	want, err := again()
	if err != nil {
		return refuse(ReasonMalformed, "cannot be encoded again: %v", err)
	}
	if !bytes.Equal(want, data) {
		return refuse(ReasonMalformed, "not in its canonical encoding, first at byte %d", firstDifference(want, data))
	}
	return nil
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// list is l, and [] in JSON where l is nil.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
