// Package identity is the public record of a Pi: the gateway key that a PC's image
// pins, the chip's own keys, what was booted. It stands on the configuration
// partition, where the operator can read it with any computer. Nothing in it is
// secret, and nothing in it is proven by standing there: the verifier makes the
// chip prove its keys (package tpm2, credentials).
package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	gateway "portcullis/attestserver/identity"
	"portcullis/hardware"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
)

// Schema is the only schema.
const Schema = "portcullis/pi-identity/v1"

// Record is the JSON of "portcullis identity --json" and of card.EnrolFile.
type Record struct {
	Schema     string `json:"schema"`
	GatewayKey []byte `json:"gateway_key"` // Ed25519, raw; null before attestd's first start
	Booted     *Boot  `json:"booted"`      // null where pi-init did not start this system
	Chip       *Chip  `json:"chip"`        // null without a TPM
	// ChipProblem says why there is a TPM and no Chip.
	ChipProblem string `json:"chip_problem,omitempty"`
	// Enrolled is what first boot wrote down; null where that cannot be read.
	Enrolled *card.Enrolment `json:"enrolled"`
}

// Boot is what pi-init said of this boot.
type Boot struct {
	Model    string    `json:"model"`
	Profile  string    `json:"profile"`
	Sequence uint64    `json:"sequence"`
	Slot     card.Slot `json:"slot"`
	Posture  string    `json:"posture"`
	Platform string    `json:"platform"`
	Backend  string    `json:"backend"`
	Volume   string    `json:"volume,omitempty"` // LUKS2 UUID
	// VolumePCR is register 15 after pi-init opened the volume, hex: the same in every
	// boot with the same volume, and another one with any other.
	VolumePCR  string `json:"volume_pcr,omitempty"`
	ReEnrolled bool   `json:"re_enrolled,omitempty"` // the chip had kept the key of another card before
}

// Chip is the public identity of the TPM.
type Chip struct {
	tpm2.Enrolment
	HasCert bool `json:"has_ek_cert"` // the maker's certificate of the endorsement key is in the chip
}

// MaxRecord caps an encoded Record, in bytes: what the card keeps of it.
const MaxRecord = card.EnrolSize

// Sources are where a Record comes from.
type Sources struct {
	KeyFile  string         // attestd's private key, of which only the public half is taken
	Handover *card.Handover // nil: not started by pi-init
	TPM      func(context.Context) (*tpm2.Enrolment, error)
	Before   []byte // card.EnrolFile as it is: first boot's record, or one of ours
}

// Collect makes the record. A missing gateway key or chip is no error; a key file
// that cannot be used is.
func Collect(ctx context.Context, s Sources) (*Record, error) {
	r := &Record{Schema: Schema}
	key, err := gateway.Load(s.KeyFile)
	switch {
	case err == nil:
		r.GatewayKey = bytes.Clone(gateway.PublicKey(key))
		clear(key)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	r.Enrolled = enrolled(s.Before)
	h := s.Handover
	if h == nil {
		return r, nil
	}
	r.Booted = &Boot{Model: h.Model, Profile: h.Profile, Sequence: h.Sequence, Slot: h.Slot, Posture: h.Posture, Platform: h.Platform, Backend: h.Backend,
		Volume: h.Volume, VolumePCR: h.VolumePCR, ReEnrolled: h.ReEnrolled}
	switch hardware.Backend(h.Backend) {
	case hardware.BackendTPM2, hardware.BackendCombined:
		e, err := s.TPM(ctx)
		if err != nil {
			r.ChipProblem = err.Error()
			break
		}
		r.Chip = &Chip{Enrolment: *e, HasCert: len(e.EKCert) > 0}
	}
	return r, nil
}

// enrolled takes first boot's record out of the file on the card.
func enrolled(b []byte) *card.Enrolment {
	var first card.Enrolment
	if err := json.Unmarshal(b, &first); err == nil && first.Schema == card.EnrolmentSchema {
		return &first
	}
	if ours, err := Parse(b); err == nil {
		return ours.Enrolled
	}
	return nil
}

// Encode returns the JSON of r.
func (r *Record) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil && len(b) >= MaxRecord {
		err = fmt.Errorf("identity: %d bytes do not fit into %d", len(b), MaxRecord)
	}
	return append(b, '\n'), err
}

// Parse reads a record, for instance from the card of a Pi that is to be enrolled.
func Parse(b []byte) (*Record, error) {
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("identity: %d bytes are more than %d", len(b), MaxRecord)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var r Record
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("identity: something follows the object")
	}
	return &r, r.check()
}

func (r *Record) check() error {
	switch {
	case r.Schema != Schema:
		return fmt.Errorf("identity: schema %.60q is not %q", r.Schema, Schema)
	case len(r.GatewayKey) != 0 && len(r.GatewayKey) != ed25519.PublicKeySize:
		return fmt.Errorf("identity: a gateway key of %d bytes, an Ed25519 key has %d", len(r.GatewayKey), ed25519.PublicKeySize)
	case r.Chip != nil && r.Chip.HasCert != (len(r.Chip.EKCert) > 0):
		return errors.New("identity: has_ek_cert contradicts ek_cert")
	}
	return nil
}

// Line is the line of the record on the console.
func (r *Record) Line() string {
	key := "none"
	if len(r.GatewayKey) > 0 {
		key = base64.StdEncoding.EncodeToString(r.GatewayKey)
	}
	return "portcullis: identity gateway=" + key
}
