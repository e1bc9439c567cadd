package approval

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"

	"portcullis/images/manifest"
	"portcullis/internal/strictjson"
)

// maxApprovers is the largest file of approvers in bytes.
const maxApprovers = 16 << 10

// MaxKeys is how many approvers there can be.
const MaxKeys = 16

// Approvers says whose signatures make an approval. The zero value has nobody:
// nothing is approved.
type Approvers struct {
	Threshold       int                 // signatures that an approval needs, 1 to len(Keys)
	RevokeThreshold int                 // that a revocation needs; fewer make it quicker to stop something
	Keys            []ed25519.PublicKey // 1 to MaxKeys, distinct
}

type approversFile struct {
	Threshold       int      `json:"threshold"`
	RevokeThreshold int      `json:"revoke_threshold"`
	Keys            []string `json:"keys"` // standard base64
}

// Encode returns the one encoding of a, without white space.
func (a Approvers) Encode() ([]byte, error) {
	if err := a.validate(); err != nil {
		return nil, err
	}
	f := approversFile{a.Threshold, a.RevokeThreshold, []string{}}
	for _, k := range a.Keys {
		f.Keys = append(f.Keys, base64.StdEncoding.EncodeToString(k))
	}
	return strictjson.Compact(f)
}

// ParseApprovers reads a file of approvers. White space is free; everything else
// is as Encode writes it. Every refusal has ReasonApprovers.
func ParseApprovers(data []byte) (Approvers, error) {
	bad := func(err error) (Approvers, error) {
		return Approvers{}, refuse(ReasonApprovers, "the file of approvers: %v", err)
	}
	if len(data) > maxApprovers {
		return bad(errors.New("it is too long"))
	}
	var plain bytes.Buffer
	if err := json.Compact(&plain, data); err != nil {
		return bad(err)
	}
	var f approversFile
	if err := canonical(plain.Bytes(), &f, func() ([]byte, error) { return strictjson.Compact(f) }); err != nil {
		return bad(err)
	}
	a := Approvers{Threshold: f.Threshold, RevokeThreshold: f.RevokeThreshold}
	for _, s := range f.Keys {
		k, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil {
			return bad(err)
		}
		a.Keys = append(a.Keys, k)
	}
	if err := a.validate(); err != nil {
		return Approvers{}, err
	}
	return a, nil
}

// LoadApprovers reads the file at path. A file that is not there is an error with
// ReasonApprovers, and fs.ErrNotExist: whoever goes on without it has nobody to believe.
func LoadApprovers(path string) (Approvers, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Approvers{}, errors.Join(refuse(ReasonApprovers, "%s is not there", path), fs.ErrNotExist)
	}
	if err != nil {
		return Approvers{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxApprovers+1))
	if err != nil {
		return Approvers{}, err
	}
	return ParseApprovers(data)
}

func (a Approvers) validate() error {
	n := len(a.Keys)
	switch {
	case n == 0 || n > MaxKeys:
		return refuse(ReasonApprovers, "%d keys, 1 to %d are possible", n, MaxKeys)
	case a.Threshold < 1 || a.Threshold > n:
		return refuse(ReasonApprovers, "threshold %d, 1 to %d are possible with these keys", a.Threshold, n)
	case a.RevokeThreshold < 1 || a.RevokeThreshold > n:
		return refuse(ReasonApprovers, "revoke_threshold %d, 1 to %d are possible with these keys", a.RevokeThreshold, n)
	}
	seen := map[string]bool{}
	for i, k := range a.Keys {
		// The all-zero key is a point of small order: signatures under it can be forged.
		if len(k) != ed25519.PublicKeySize || bytes.Equal(k, make([]byte, ed25519.PublicKeySize)) {
			return refuse(ReasonApprovers, "keys[%d] is no Ed25519 public key", i)
		}
		if seen[string(k)] {
			return refuse(ReasonApprovers, "keys[%d] is there twice and would count twice", i)
		}
		seen[string(k)] = true
	}
	return nil
}

// Open verifies an envelope of Approval.Sign and returns the approval and its digest.
func (a Approvers) Open(envelope []byte) (*Approval, string, error) {
	payload, err := a.open(PayloadType, envelope, a.Threshold)
	if err != nil {
		return nil, "", err
	}
	got, err := Parse(payload)
	return got, Digest(payload), err
}

// OpenRevocation verifies an envelope of Revocation.Sign.
func (a Approvers) OpenRevocation(envelope []byte) (*Revocation, error) {
	payload, err := a.open(RevocationType, envelope, a.RevokeThreshold)
	if err != nil {
		return nil, err
	}
	return ParseRevocation(payload)
}

func (a Approvers) open(payloadType string, envelope []byte, threshold int) ([]byte, error) {
	if len(envelope) > MaxEnvelope {
		return nil, refuse(ReasonMalformed, "the envelope has %d bytes, at most %d are read", len(envelope), MaxEnvelope)
	}
	if err := a.validate(); err != nil {
		return nil, err
	}
	payload, err := manifest.OpenPayload(payloadType, envelope, manifest.Trust{Threshold: threshold, ReleaseKeys: a.Keys})
	if err != nil {
		return nil, translate(err)
	}
	return payload, nil
}

// translate gives a refusal of the envelope the name that it has here.
func translate(err error) error {
	var e *manifest.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Reason {
	case manifest.ReasonSignature:
		return refuse(ReasonSignature, "%s", e.Detail)
	case manifest.ReasonThreshold:
		return refuse(ReasonThreshold, "%s", e.Detail)
	case manifest.ReasonTrust:
		return refuse(ReasonApprovers, "%s", e.Detail)
	case manifest.ReasonKey:
		return err // of a signer: the file's own reason says more
	}
	return refuse(ReasonMalformed, "%s", e.Detail)
}
