package approval

import (
	"crypto"

	"portcullis/images/manifest"
)

// Peeked is what an envelope says of itself; nobody was asked whether it is so.
type Peeked struct {
	Approval   *Approval   // one of these two
	Revocation *Revocation //
	Digest     string      // of the payload
	KeyIDs     []string    // of those who say that they signed it
}

// Peek reads an envelope of either kind without believing it: to show it to
// people, and to find out which kind it is.
func Peek(envelope []byte) (*Peeked, error) {
	if len(envelope) > MaxEnvelope {
		return nil, refuse(ReasonMalformed, "the envelope has %d bytes, at most %d are read", len(envelope), MaxEnvelope)
	}
	payload, ids, err := manifest.PeekPayload(PayloadType, envelope)
	if err == nil {
		a, err := Parse(payload)
		if err != nil {
			return nil, err
		}
		return &Peeked{Approval: a, Digest: Digest(payload), KeyIDs: ids}, nil
	}
	payload, ids, second := manifest.PeekPayload(RevocationType, envelope)
	if second != nil {
		return nil, translate(err)
	}
	r, err := ParseRevocation(payload)
	if err != nil {
		return nil, err
	}
	return &Peeked{Revocation: r, Digest: Digest(payload), KeyIDs: ids}, nil
}

// Cosign adds signatures to an envelope whose approvers keep their keys on
// different machines. It checks what is signed, not the signatures that are there.
func Cosign(envelope []byte, signers ...crypto.Signer) ([]byte, error) {
	p, err := Peek(envelope)
	if err != nil {
		return nil, err
	}
	kind := PayloadType
	if p.Revocation != nil {
		kind = RevocationType
	}
	data, err := manifest.CosignPayload(kind, envelope, signers...)
	if err != nil {
		return nil, translate(err)
	}
	if len(data) > MaxEnvelope {
		return nil, refuse(ReasonMalformed, "the envelope would have %d bytes, at most %d are possible", len(data), MaxEnvelope)
	}
	return data, nil
}
