// Package result says what is believed of the PC in a form that anybody can
// check: an EAT Attestation Result (draft-ietf-rats-ear) signed by the gateway's
// key, as a JWT (RFC 7519) or a CWT (RFC 8392). It is pure: attestserver/server
// signs, `portcullis verdict verify` and other nodes verify.
package result

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// Profile is the profile of every EAR (draft-ietf-rats-ear).
const Profile = "tag:github.com,2023:veraison/ear"

// Labels of the two appraisals in a result.
const (
	SubmodPC      = "pc"
	SubmodGateway = "gateway"
)

// Status is a trustworthiness tier of AR4SI (draft-ietf-rats-ar4si §2.3.2): a
// number in CBOR, a word in JSON.
type Status int8

// Statuses.
const (
	StatusNone            Status = 0
	StatusAffirming       Status = 2
	StatusWarning         Status = 32
	StatusContraindicated Status = 96
)

var statusWords = map[Status]string{
	StatusNone: "none", StatusAffirming: "affirming", StatusWarning: "warning", StatusContraindicated: "contraindicated",
}

func (s Status) String() string {
	if w, ok := statusWords[s]; ok {
		return w
	}
	return fmt.Sprintf("status %d", int8(s))
}

// MarshalJSON writes the word.
func (s Status) MarshalJSON() ([]byte, error) {
	w, ok := statusWords[s]
	if !ok {
		return nil, fmt.Errorf("no status %d", int8(s))
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads the word.
func (s *Status) UnmarshalJSON(b []byte) error {
	var w string
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	for k, v := range statusWords {
		if v == w {
			*s = k
			return nil
		}
	}
	return fmt.Errorf("no status %.32q", w)
}

// Bytes are a byte string in CBOR and base64url without padding in JSON (EAT, RFC 9711 §7.2.2).
type Bytes []byte

// MarshalJSON writes base64url.
func (b Bytes) MarshalJSON() ([]byte, error) {
	return json.Marshal(base64.RawURLEncoding.EncodeToString(b))
}

// UnmarshalJSON reads base64url.
func (b *Bytes) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	d, err := base64.RawURLEncoding.Strict().DecodeString(s)
	*b = d
	return err
}

// Claims are the claims of one result. Times are Unix seconds.
type Claims struct {
	Profile  string               `json:"eat_profile" cbor:"265,keyasint"`
	IssuedAt int64                `json:"iat" cbor:"6,keyasint"`
	Expires  int64                `json:"exp" cbor:"4,keyasint"`
	Nonce    Bytes                `json:"eat_nonce,omitempty" cbor:"10,keyasint,omitempty"` // of the one who asked, 8 to 64 bytes
	Verifier VerifierID           `json:"ear.verifier-id" cbor:"1004,keyasint"`
	Submods  map[string]Appraisal `json:"submods" cbor:"266,keyasint"`
}

// VerifierID names the software that has judged.
type VerifierID struct {
	Developer string `json:"developer" cbor:"0,keyasint"`
	Build     string `json:"build" cbor:"1,keyasint"`
}

// Appraisal is what is believed of one attester.
type Appraisal struct {
	Status  Status   `json:"ear.status" cbor:"1000,keyasint"`
	Vector  *Vector  `json:"ear.trustworthiness-vector,omitempty" cbor:"1001,keyasint,omitempty"`
	Policy  string   `json:"ear.appraisal-policy-id,omitempty" cbor:"1003,keyasint,omitempty"`
	PC      *PC      `json:"portcullis.pc,omitempty" cbor:"-70001,keyasint,omitempty"`
	Gateway *Gateway `json:"portcullis.gateway,omitempty" cbor:"-70002,keyasint,omitempty"`
}

// Vector is AR4SI's trustworthiness vector; a nil entry makes no claim.
type Vector struct {
	Identity      *int8 `json:"instance-identity,omitempty" cbor:"0,keyasint,omitempty"`
	Configuration *int8 `json:"configuration,omitempty" cbor:"1,keyasint,omitempty"`
	Executables   *int8 `json:"executables,omitempty" cbor:"2,keyasint,omitempty"`
	FileSystem    *int8 `json:"file-system,omitempty" cbor:"3,keyasint,omitempty"`
	Hardware      *int8 `json:"hardware,omitempty" cbor:"4,keyasint,omitempty"`
}

// all lists the entries.
func (v *Vector) all() []*int8 {
	return []*int8{v.Identity, v.Configuration, v.Executables, v.FileSystem, v.Hardware}
}

// PC is what EAR has no word for.
type PC struct {
	Tier         string    `json:"tier" cbor:"0,keyasint"`  // T0, T1 or T2
	Means        string    `json:"means" cbor:"1,keyasint"` // what a PASS at this tier means, in words
	State        string    `json:"state" cbor:"2,keyasint"`
	Reason       string    `json:"reason" cbor:"3,keyasint"`
	Session      string    `json:"session" cbor:"4,keyasint"`
	Image        string    `json:"image,omitempty" cbor:"5,keyasint,omitempty"`
	ImageVersion uint64    `json:"image_version,omitempty" cbor:"6,keyasint,omitempty"`
	LabImage     bool      `json:"lab_image,omitempty" cbor:"7,keyasint,omitempty"`
	Challenges   uint64    `json:"challenges" cbor:"8,keyasint"`
	Failures     uint64    `json:"failures" cbor:"9,keyasint"`
	Evidence     Bytes     `json:"evidence" cbor:"10,keyasint"` // head of the evidence chain
	Findings     []Finding `json:"findings,omitempty" cbor:"11,keyasint,omitempty"`
	Warnings     []string  `json:"warnings,omitempty" cbor:"12,keyasint,omitempty"`
	Context      string    `json:"context,omitempty" cbor:"13,keyasint,omitempty"`     // as the one who asked gave it
	Asked        *Asked    `json:"asked,omitempty" cbor:"14,keyasint,omitempty"`       // present where the PC was asked for this result
	LogOrigin    string    `json:"log_origin,omitempty" cbor:"15,keyasint,omitempty"`  // the verdict log
	LogIndex     int64     `json:"log_index,omitempty" cbor:"16,keyasint,omitempty"`   // the PC's newest entry, counted from 0
	LogEntries   int64     `json:"log_entries,omitempty" cbor:"17,keyasint,omitempty"` // how many it had then
	Name         string    `json:"name,omitempty" cbor:"20,keyasint,omitempty"`        // of the PC, where the gateway has several
}

// Asked shows that the caller's nonce went into the question: the challenge's
// nonce is protocol.FoldNonces(Own, Nonces), and the caller's is among Nonces.
type Asked struct {
	Own    Bytes   `json:"own" cbor:"0,keyasint"`    // 32 bytes, the gateway's
	Nonces []Bytes `json:"nonces" cbor:"1,keyasint"` // of all who asked at once
}

// Finding is one thing that was not as expected.
type Finding struct {
	Time   int64  `json:"time" cbor:"0,keyasint"` // Unix seconds
	Probe  string `json:"probe" cbor:"1,keyasint"`
	Reason string `json:"reason" cbor:"2,keyasint"`
	Detail string `json:"detail,omitempty" cbor:"3,keyasint,omitempty"`
	Class  string `json:"class" cbor:"4,keyasint"`
}

// Gateway is what the judge says of itself. Nobody has checked it: the status of
// its appraisal is none.
type Gateway struct {
	Posture string `json:"posture" cbor:"0,keyasint"`
}
