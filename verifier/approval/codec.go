package approval

import (
	"bytes"

	"portcullis/internal/strictjson"
)

// canonical reads data into v and compares it with what again makes of that:
// whatever a second reader could understand differently (unknown and doubled
// fields, other letter case, white space, bytes behind the end) is refused.
func canonical(data []byte, v any, again func() ([]byte, error)) error {
	if len(data) > MaxEnvelope {
		return refuse(ReasonMalformed, "%d bytes, at most %d are read", len(data), MaxEnvelope)
	}
	if err := strictjson.Decode(data, v); err != nil {
		return refuse(ReasonMalformed, "not readable: %v", err)
	}
	want, err := again()
	if err != nil {
		return refuse(ReasonMalformed, "cannot be encoded again: %v", err)
	}
	if !bytes.Equal(want, data) {
		return refuse(ReasonMalformed, "not in its canonical encoding, first at byte %d", strictjson.FirstDifference(want, data))
	}
	return nil
}

// list is l, and [] in JSON where l is nil.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
