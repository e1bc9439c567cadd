package manifest

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"sort"
	"strconv"
	"time"

	"portcullis/internal/strictjson"
)

// MaxEnvelope is the largest envelope, in bytes, that Open looks at.
const MaxEnvelope = 4 << 20

// maxSignatures bounds the work that an envelope of strangers can ask for.
const maxSignatures = 16

// envelope is the DSSE v1 envelope (github.com/secure-systems-lab/dsse, envelope.md).
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // standard base64
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"` // standard base64
}

// Verified is a manifest that Open has accepted.
type Verified struct {
	Manifest
	Digest [32]byte // SHA-256 of the signed payload
}

// KeyID names a release key in an envelope: the first 16 bytes of the SHA-256
// of the public key, as hex.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

// Sign validates m and returns the envelope with one signature for each signer.
// Every signer holds an Ed25519 key; the same key twice is refused.
func Sign(m Manifest, signers ...crypto.Signer) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	payload, err := Encode(m)
	if err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	if len(signers) == 0 {
		return nil, refuse(ReasonThreshold, "sign manifest: no signer is given")
	}
	return seal(envelope{PayloadType: PayloadType, Payload: payload}, signers)
}

// SignPayload puts another kind of signed document of the project (a card's block
// map, an update bundle) into the same envelope. The payload type is signed with
// the payload: an envelope of one kind is never accepted as another.
func SignPayload(payloadType string, payload []byte, signers ...crypto.Signer) ([]byte, error) {
	if len(signers) == 0 {
		return nil, refuse(ReasonThreshold, "sign: no signer is given")
	}
	return seal(envelope{PayloadType: payloadType, Payload: payload}, signers)
}

// OpenPayload verifies an envelope of SignPayload against trust and returns its
// payload, of which nothing but the signatures has been looked at.
func OpenPayload(payloadType string, data []byte, trust Trust) ([]byte, error) {
	e, err := openEnvelope(data, payloadType)
	if err != nil {
		return nil, err
	}
	if err := trust.checkRelease(); err != nil {
		return nil, err
	}
	if err := checkSignatures(e, trust); err != nil {
		return nil, err
	}
	return e.Payload, nil
}

// PeekPayload returns the payload of an envelope and the keys that it names, and
// asks nobody whether they signed it. It is for telling people what a file says of
// itself when they gave no key; nothing may be believed on its word.
func PeekPayload(payloadType string, data []byte) (payload []byte, keyIDs []string, err error) {
	e, err := openEnvelope(data, payloadType)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range e.Signatures {
		keyIDs = append(keyIDs, s.KeyID)
	}
	return e.Payload, keyIDs, nil
}

// Cosign adds the signature of signer to an envelope, for releases whose keys
// are kept on different machines. It checks the manifest but, knowing no trust
// file, not the signatures that are already there.
func Cosign(data []byte, signer crypto.Signer) ([]byte, error) {
	e, err := openEnvelope(data, PayloadType)
	if err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	m, err := decode(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	return seal(e, []crypto.Signer{signer})
}

// CosignPayload adds signatures to an envelope of SignPayload. It looks at nothing
// of the payload and not at the signatures that are already there.
func CosignPayload(payloadType string, data []byte, signers ...crypto.Signer) ([]byte, error) {
	e, err := openEnvelope(data, payloadType)
	if err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	return seal(e, signers)
}

func seal(e envelope, signers []crypto.Signer) ([]byte, error) {
	for _, s := range signers {
		key, ok := s.Public().(ed25519.PublicKey)
		if !ok {
			return nil, refuse(ReasonKey, "sign manifest: %T is not an Ed25519 key", s.Public())
		}
		sig, err := s.Sign(rand.Reader, pae(e.PayloadType, e.Payload), crypto.Hash(0))
		if err != nil {
			return nil, fmt.Errorf("sign manifest with %s: %w", KeyID(key), err)
		}
		e.Signatures = append(e.Signatures, signature{KeyID: KeyID(key), Sig: sig})
	}
	sort.Slice(e.Signatures, func(i, j int) bool { return e.Signatures[i].KeyID < e.Signatures[j].KeyID })
	data, err := strictjson.Compact(e)
	if err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	// Reading it back finds the same key twice and every size over its cap.
	if _, err := openEnvelope(data, e.PayloadType); err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	return data, nil
}

// Open verifies an envelope against trust and returns its manifest. It accepts
// only when trust.Threshold distinct release keys signed it, now is in
// [not_before, not_after) and the version is not below floor. Signatures of
// unknown keys are passed over, so that keys can be exchanged; one wrong
// signature of a known key refuses the whole. Every refusal is an *Error.
func Open(data []byte, trust Trust, now time.Time, floor uint64) (*Verified, error) {
	v, err := OpenUndated(data, trust, floor)
	switch {
	case err != nil:
		return nil, err
	case now.Before(v.NotBefore):
		return nil, refuse(ReasonNotYet, "valid from %s, now is %s", v.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !now.Before(v.NotAfter):
		return nil, refuse(ReasonExpired, "valid until %s, now is %s", v.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return v, nil
}

// OpenUndated is Open without the dates, for storing an image on a machine whose
// clock may not be set yet. Who serves or boots it calls Open.
func OpenUndated(data []byte, trust Trust, floor uint64) (*Verified, error) {
	e, err := openEnvelope(data, PayloadType)
	if err != nil {
		return nil, err
	}
	if err := trust.checkRelease(); err != nil {
		return nil, err
	}
	// Nothing of the payload is looked at before its signatures hold.
	if err := checkSignatures(e, trust); err != nil {
		return nil, err
	}
	m, err := decode(e.Payload)
	if err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if m.Version < floor {
		return nil, refuse(ReasonVersion, "version %d is older than %d, which was accepted before", m.Version, floor)
	}
	return &Verified{Manifest: m, Digest: sha256.Sum256(e.Payload)}, nil
}

func openEnvelope(data []byte, payloadType string) (envelope, error) {
	var e envelope
	if len(data) > MaxEnvelope {
		return e, refuse(ReasonSize, "the envelope is %d bytes long, at most %d are read", len(data), MaxEnvelope)
	}
	if err := strictjson.Decode(data, &e); err != nil {
		return e, refuse(ReasonMalformed, "the envelope is not readable: %v", err)
	}
	if again, err := strictjson.Compact(e); err != nil || !bytes.Equal(again, data) {
		return e, refuse(ReasonMalformed, "the envelope is not in its canonical encoding, first at byte %d", strictjson.FirstDifference(again, data))
	}
	if e.PayloadType != payloadType {
		return e, refuse(ReasonMalformed, "payload type %.80q, only %q is accepted here", e.PayloadType, payloadType)
	}
	if len(e.Signatures) == 0 {
		return e, refuse(ReasonSignature, "the envelope has no signature")
	}
	if len(e.Signatures) > maxSignatures {
		return e, refuse(ReasonSize, "%d signatures, at most %d are read", len(e.Signatures), maxSignatures)
	}
	for i, s := range e.Signatures {
		if i > 0 && e.Signatures[i-1].KeyID >= s.KeyID {
			return e, refuse(ReasonMalformed, "signatures are not sorted by key, or %.40q is there twice", s.KeyID)
		}
	}
	return e, nil
}

func checkSignatures(e envelope, trust Trust) error {
	message := pae(e.PayloadType, e.Payload)
	valid := 0
	for _, s := range e.Signatures {
		for _, key := range trust.ReleaseKeys {
			if KeyID(key) != s.KeyID {
				continue
			}
			if !ed25519.Verify(key, message, s.Sig) {
				return refuse(ReasonSignature, "the signature of key %s does not verify", s.KeyID)
			}
			valid++
		}
	}
	switch {
	case valid == 0:
		return refuse(ReasonSignature, "none of the %d signatures is of a release key", len(e.Signatures))
	case valid < trust.Threshold:
		return refuse(ReasonThreshold, "%d of the %d signatures needed are there", valid, trust.Threshold)
	}
	return nil
}

// pae is the pre-authentication encoding of DSSE v1 (protocol.md): what is signed.
func pae(payloadType string, payload []byte) []byte {
	b := make([]byte, 0, len(payload)+len(payloadType)+32)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(payloadType)), 10)
	b = append(b, ' ')
	b = append(b, payloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// Fingerprint is the hex form of Digest, as it stands in boot.json, events and claims.
func (v *Verified) Fingerprint() string { return hex.EncodeToString(v.Digest[:]) }

func decodeKey(s string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("not standard base64: %w", err)
	}
	if len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%d bytes long, an Ed25519 public key has %d", len(b), ed25519.PublicKeySize)
	}
	// The all-zero key is a point of small order: signatures under it can be forged.
	if bytes.Equal(b, make([]byte, ed25519.PublicKeySize)) {
		return nil, fmt.Errorf("the all-zero key is no key")
	}
	return b, nil
}
