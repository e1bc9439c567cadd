package card

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Enrolment is the public record of a first boot on the configuration partition. The
// identity service of the running system adds to what it writes there.
type Enrolment struct {
	Schema   string `json:"schema"` // EnrolmentSchema
	Volume   string `json:"volume"` // LUKS2 UUID
	Release  uint64 `json:"release"`
	Backend  string `json:"backend"`
	Chip     string `json:"chip"`
	Posture  string `json:"posture"`
	Platform string `json:"platform"`
	Escrow   bool   `json:"escrow"`
	// VolumePCR is register 15 (SHA-256 bank, hex) after the volume key was measured
	// into it; empty without a TPM. The same volume gives the same value in every boot,
	// another one never does.
	VolumePCR string `json:"volume_pcr,omitempty"`
	// ReEnrolled: the chip had kept the key of a card before this one was enrolled.
	ReEnrolled bool `json:"re_enrolled,omitempty"`
}

// EnrolmentSchema is the only schema.
const EnrolmentSchema = "portcullis/enrolment/v1"

// ParseEnrolment reads a record that first boot wrote.
func ParseEnrolment(b []byte) (*Enrolment, error) {
	if len(b) > EnrolSize {
		return nil, fmt.Errorf("enrolment: %d bytes are more than %d", len(b), EnrolSize)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var e Enrolment
	if err := d.Decode(&e); err != nil {
		return nil, fmt.Errorf("enrolment: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("enrolment: something follows the object")
	}
	if e.Schema != EnrolmentSchema {
		return nil, fmt.Errorf("enrolment: schema %.60q is not %q", e.Schema, EnrolmentSchema)
	}
	return &e, nil
}

// Encode returns the JSON of a record, with its schema.
func (e Enrolment) Encode() []byte {
	e.Schema = EnrolmentSchema
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("card: a record of strings cannot be encoded: %v", err))
	}
	return append(b, '\n')
}
