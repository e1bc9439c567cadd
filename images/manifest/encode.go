package manifest

import (
	"bytes"
	"time"

	"portcullis/internal/strictjson"
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
	return strictjson.Compact(m)
}

// decode reads the encoding of Encode and nothing else: whatever a second
// reader could understand differently (unknown and doubled fields, other
// letter case, escapes, white space, bytes behind the end) does not encode to
// the same bytes again and is refused.
func decode(payload []byte) (Manifest, error) {
	var m Manifest
	if err := strictjson.Decode(payload, &m); err != nil {
		return Manifest{}, refuse(ReasonMalformed, "the manifest is not readable: %v", err)
	}
	again, err := Encode(m)
	if err != nil {
		return Manifest{}, refuse(ReasonMalformed, "the manifest cannot be encoded again: %v", err)
	}
	if !bytes.Equal(again, payload) {
		return Manifest{}, refuse(ReasonMalformed, "the manifest is not in its canonical encoding, first at byte %d", strictjson.FirstDifference(again, payload))
	}
	return m, nil
}
