package approval

import (
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strconv"
	"time"

	"portcullis/images/manifest"
	"portcullis/internal/strictjson"
)

// Schema is the only schema of an approval that this package reads and writes.
const Schema = "portcullis/approval/v1"

// PayloadType is the DSSE payload type of an approval.
const PayloadType = "application/vnd.portcullis.approval.v1+json"

// MaxEnvelope is the largest envelope of an approval or revocation, in bytes: it
// fits into an entry of the log with room to spare.
const MaxEnvelope = 48 << 10

// Approval is what approvers sign.
type Approval struct {
	Schema    string    `json:"schema"`
	Name      string    `json:"name"`       // what it is a version of: "pxed"
	Version   uint64    `json:"version"`    // of this approval, from 1; a higher one of the name replaces it
	Purpose   string    `json:"purpose"`    // "service/pxed", "task"
	Image     Image     `json:"image"`      //
	Profile   Profile   `json:"profile"`    // the most that it may have
	NotBefore time.Time `json:"not_before"` // valid in [NotBefore, NotAfter), whole seconds, UTC
	NotAfter  time.Time `json:"not_after"`
}

var (
	nameForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	purposeForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._/-]{0,127}$`)
)

// IsPurpose tells whether s has the form of a purpose.
func IsPurpose(s string) bool { return purposeForm.MatchString(s) }

// Validate checks every field against its range.
func (a *Approval) Validate() error {
	switch {
	case a.Schema != Schema:
		return refuse(ReasonMalformed, "schema %.80q, only %q is known", a.Schema, Schema)
	case !nameForm.MatchString(a.Name):
		return refuse(ReasonMalformed, "name %.80q is no lower-case name", a.Name)
	case a.Version == 0 || a.Version > 1<<53:
		return refuse(ReasonMalformed, "version %d, 1 to 2^53 are possible", a.Version)
	case !IsPurpose(a.Purpose):
		return refuse(ReasonMalformed, "purpose %.80q is no lower-case path", a.Purpose)
	case !a.NotBefore.Before(a.NotAfter):
		return refuse(ReasonMalformed, "not_after is not later than not_before")
	case a.NotBefore.Year() < 2000 || a.NotAfter.Year() > 9999:
		return refuse(ReasonMalformed, "not_before, not_after: outside of the years 2000 to 9999")
	}
	if err := a.Image.validate(); err != nil {
		return err
	}
	return a.Profile.Validate()
}

// Encode returns the one encoding of a: JSON without white space, fields in the
// order of the types, empty lists as [], times in UTC to the second.
func (a Approval) Encode() ([]byte, error) {
	a.NotBefore, a.NotAfter = a.NotBefore.UTC().Truncate(time.Second), a.NotAfter.UTC().Truncate(time.Second)
	a.Image.Layers = list(a.Image.Layers)
	a.Profile = a.Profile.Listed()
	return strictjson.Compact(a)
}

// Listed is p with empty lists where it has none, as they are encoded.
func (p Profile) Listed() Profile {
	p.Capabilities, p.Command, p.Env = list(p.Capabilities), list(p.Command), list(p.Env)
	p.Mounts, p.Tmpfs = list(p.Mounts), list(p.Tmpfs)
	return p
}

// Parse reads the encoding of Encode and nothing else.
func Parse(payload []byte) (*Approval, error) {
	var a Approval
	if err := canonical(payload, &a, func() ([]byte, error) { return a.Encode() }); err != nil {
		return nil, err
	}
	if err := a.Validate(); err != nil {
		return nil, err
	}
	return &a, nil
}

// Digest names a signed payload: "sha256:" and the SHA-256 of it.
func Digest(payload []byte) string {
	sum := sha256.Sum256(payload)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Sign validates a and returns its envelope (DSSE v1) with one signature for each
// signer; all hold Ed25519 keys. Further approvers add theirs with Cosign.
func (a Approval) Sign(signers ...crypto.Signer) ([]byte, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	payload, err := a.Encode()
	if err != nil {
		return nil, err
	}
	return seal(PayloadType, payload, signers)
}

func seal(payloadType string, payload []byte, signers []crypto.Signer) ([]byte, error) {
	data, err := manifest.SignPayload(payloadType, payload, signers...)
	if err != nil {
		return nil, translate(err)
	}
	if len(data) > MaxEnvelope {
		return nil, refuse(ReasonMalformed, "the envelope has %d bytes, at most %d are possible", len(data), MaxEnvelope)
	}
	return data, nil
}

// Version is the name and the version of a for people: "pxed version 3".
func Version(a *Approval) string { return a.Name + " version " + strconv.FormatUint(a.Version, 10) }
