// Package tpmattest is how a TPM 2.0 shows what it holds: endorsement and
// attestation key, credential activation, quotes, and the verifier's side of each.
// The Pi's own chip (package tpm2), the agent on the PC and attestd use it; it
// depends on go-tpm only, and the functions that need a chip say so.
package tpmattest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// EKKind is the algorithm of an endorsement key.
type EKKind string

// Kinds.
const (
	EKRSA EKKind = "rsa2048"
	EKECC EKKind = "ecc-p256"
)

// NV indices of the endorsement keys' certificates (TCG EK Credential Profile 2.2.1.4).
const (
	NVCertRSA = 0x01C00002
	NVCertECC = 0x01C0000A
)

// EKTemplate is TCG's template of an endorsement key and the NV index of its certificate.
func EKTemplate(k EKKind) (tpm2.TPMTPublic, uint32, error) {
	switch k {
	case EKRSA:
		return tpm2.RSAEKTemplate, NVCertRSA, nil
	case EKECC:
		return tpm2.ECCEKTemplate, NVCertECC, nil
	}
	return tpm2.TPMTPublic{}, 0, fmt.Errorf("endorsement key %q is not known", k)
}

// AKTemplate is the attestation key: a primary key of the endorsement hierarchy,
// the same at each making, that signs only what its chip made. In that hierarchy a
// quote tells the chip's counters of resets in the clear (Part 1, 36.7).
func AKTemplate() tpm2.TPMTPublic { return SignTemplate("portcullis/attestation-key/v1", true) }

// SignTemplate of a primary ECDSA P-256 key. The label in the unique field keeps
// it apart from other software's keys.
func SignTemplate(label string, restricted bool) tpm2.TPMTPublic {
	x, y := sha256.Sum256([]byte(label+"/x")), sha256.Sum256([]byte(label+"/y"))
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: restricted, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x[:]}, Y: tpm2.TPM2BECCParameter{Buffer: y[:]}}),
	}
}

// SameTemplate compares two publics without their unique fields.
func SameTemplate(a, b tpm2.TPMTPublic) bool {
	if a.Type != b.Type {
		return false
	}
	switch a.Type {
	case tpm2.TPMAlgECC:
		empty := tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
		a.Unique, b.Unique = empty, empty
	case tpm2.TPMAlgRSA:
		empty := tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
		a.Unique, b.Unique = empty, empty
	default:
		return false
	}
	return bytes.Equal(tpm2.Marshal(a), tpm2.Marshal(b))
}

// UnmarshalPublic reads a TPMT_PUBLIC, of which nothing may be left over.
func UnmarshalPublic(b []byte) (p *tpm2.TPMTPublic, err error) {
	defer func() {
		if r := recover(); r != nil { // go-tpm v0.9.8 panics at some
			p, err = nil, fmt.Errorf("public area: %v", r)
		}
	}()
	p, err = tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, fmt.Errorf("public area: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(p), b) {
		return nil, errors.New("public area: something follows or is not canonical")
	}
	return p, nil
}

// PublicECDSA returns the P-256 key of a signing object.
func PublicECDSA(p *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	pub, err := tpm2.Pub(*p)
	if err != nil {
		return nil, err
	}
	e, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key is %T, not ECDSA", pub)
	}
	if _, err := e.ECDH(); err != nil {
		return nil, err
	}
	return e, nil
}

// ASN1Signature is an ECDSA signature of a chip as Go verifies it.
func ASN1Signature(s *tpm2.TPMTSignature) ([]byte, error) {
	if s.SigAlg != tpm2.TPMAlgECDSA {
		return nil, fmt.Errorf("signature algorithm %#x is not ECDSA", uint16(s.SigAlg))
	}
	e, err := s.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)})
}

// Selection of registers in the SHA-256 bank.
func Selection(pcrs ...int) tpm2.TPMLPCRSelection {
	u := make([]uint, len(pcrs))
	for i, p := range pcrs {
		u[i] = uint(p)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(u...)}}}
}
