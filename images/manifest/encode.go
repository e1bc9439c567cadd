package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Encode returns the one encoding of m: JSON without white space, the fields in
// the order of the types, map keys sorted, times in UTC to the second, no null.
// It does not validate.
func Encode(m Manifest) ([]byte, error) {
	m.NotBefore = m.NotBefore.UTC().Truncate(time.Second)
	m.NotAfter = m.NotAfter.UTC().Truncate(time.Second)
	m.Artefacts = append([]Artefact{}, m.Artefacts...)
	for i := range m.Artefacts {
		m.Artefacts[i].Chunks = append([]string{}, m.Artefacts[i].Chunks...)
	}
	m.UKI.Sections = append([]Section{}, m.UKI.Sections...)
	m.Packages = append([]string{}, m.Packages...)
	if m.PCR == nil {
		m.PCR = map[string]string{}
	}
	return compact(m)
}

// decode reads the encoding of Encode and nothing else: whatever a second
// reader could understand differently (unknown and doubled fields, other
// letter case, escapes, white space, bytes behind the end) does not encode to
// the same bytes again and is refused.
func decode(payload []byte) (Manifest, error) {
	var m Manifest
	if err := strict(payload, &m); err != nil {
		return Manifest{}, refuse(ReasonMalformed, "the manifest is not readable: %v", err)
	}
	again, err := Encode(m)
	if err != nil {
		return Manifest{}, refuse(ReasonMalformed, "the manifest cannot be encoded again: %v", err)
	}
	if !bytes.Equal(again, payload) {
		return Manifest{}, refuse(ReasonMalformed, "the manifest is not in its canonical encoding, first at byte %d", firstDifference(again, payload))
	}
	return m, nil
}

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

// strict decodes one JSON value into v; unknown fields and data behind the value are errors.
func strict(data []byte, v any) error {
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

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
