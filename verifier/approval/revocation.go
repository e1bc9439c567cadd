package approval

import (
	"crypto"
	"regexp"
	"time"

	"portcullis/internal/strictjson"
)

// RevocationSchema is the only schema of a revocation.
const RevocationSchema = "portcullis/revocation/v1"

// RevocationType is the DSSE payload type of a revocation.
const RevocationType = "application/vnd.portcullis.revocation.v1+json"

// Revocation takes back an approval, or everything that was and will be said for
// an image. It has no end.
type Revocation struct {
	Schema   string    `json:"schema"`
	Approval string    `json:"approval"` // digest of the approval; or "" and
	Image    string    `json:"image"`    // digest of an image's manifest or configuration
	Why      string    `json:"why"`      // for people; 1 to 200 printable characters
	Issued   time.Time `json:"issued"`   // whole seconds, UTC
}

var whyForm = regexp.MustCompile(`^[^\p{C}]{1,200}$`)

// Validate checks every field against its range.
func (r *Revocation) Validate() error {
	switch {
	case r.Schema != RevocationSchema:
		return refuse(ReasonMalformed, "schema %.80q, only %q is known", r.Schema, RevocationSchema)
	case (r.Approval == "") == (r.Image == ""):
		return refuse(ReasonMalformed, "a revocation names an approval or an image: one of them")
	case r.Approval != "" && !IsDigest(r.Approval), r.Image != "" && !IsDigest(r.Image):
		return refuse(ReasonMalformed, "%.80q is no sha256 digest", r.Approval+r.Image)
	case !whyForm.MatchString(r.Why):
		return refuse(ReasonMalformed, "why: 1 to 200 printable characters are needed")
	case r.Issued.Year() < 2000 || r.Issued.Year() > 9999:
		return refuse(ReasonMalformed, "issued: outside of the years 2000 to 9999")
	}
	return nil
}

// Encode returns the one encoding of r, as Approval.Encode does.
func (r Revocation) Encode() ([]byte, error) {
	r.Issued = r.Issued.UTC().Truncate(time.Second)
	return strictjson.Compact(r)
}

// ParseRevocation reads the encoding of Encode and nothing else.
func ParseRevocation(payload []byte) (*Revocation, error) {
	var r Revocation
	if err := canonical(payload, &r, func() ([]byte, error) { return r.Encode() }); err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return &r, nil
}

// Sign validates r and returns its envelope.
func (r Revocation) Sign(signers ...crypto.Signer) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	payload, err := r.Encode()
	if err != nil {
		return nil, err
	}
	return seal(RevocationType, payload, signers)
}
