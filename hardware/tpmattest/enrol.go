package tpmattest

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Enrolment is the public half of a chip's identity: what a verifier stores after
// it has proven, with a credential, that AK and EK are in one chip.
type Enrolment struct {
	Version int    `json:"version"` // 1
	EKKind  EKKind `json:"ek_kind"`
	EK      []byte `json:"ek"`                // TPMT_PUBLIC
	EKCert  []byte `json:"ek_cert,omitempty"` // DER, of the chip's maker; nothing here says whether it is trusted
	AK      []byte `json:"ak"`                // TPMT_PUBLIC
}

// EnrolmentVersion is the only version of an Enrolment.
const EnrolmentVersion = 1

// ek returns the endorsement key, which must have the shape that chips make.
func (e *Enrolment) ek() (*tpm2.TPMTPublic, error) {
	if e.Version != EnrolmentVersion {
		return nil, fmt.Errorf("enrolment: version %d is not %d", e.Version, EnrolmentVersion)
	}
	template, _, err := EKTemplate(e.EKKind)
	if err != nil {
		return nil, err
	}
	p, err := UnmarshalPublic(e.EK)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	if !SameTemplate(*p, template) {
		return nil, errors.New("endorsement key is not made from TCG's template")
	}
	return p, nil
}

// ParseAK returns the attestation key, which must be one that signs only what its
// chip made.
func ParseAK(b []byte) (*tpm2.TPMTPublic, error) {
	p, err := UnmarshalPublic(b)
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	if !SameTemplate(*p, AKTemplate()) {
		return nil, errors.New("attestation key is not a restricted signing key of ours")
	}
	if _, err := PublicECDSA(p); err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	return p, nil
}

// Certificate returns the endorsement certificate after checking that it is of
// this key; nil where the chip has none. Whether its maker is trusted is the
// caller's to check.
func (e *Enrolment) Certificate() (*x509.Certificate, error) {
	if len(e.EKCert) == 0 {
		return nil, nil
	}
	// Some makers fill the index up behind the certificate.
	der := e.EKCert
	if n, ok := derLength(der); ok {
		der = der[:n]
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("endorsement certificate: %w", err)
	}
	ek, err := e.ek()
	if err != nil {
		return nil, err
	}
	pub, err := tpm2.Pub(*ek)
	if err != nil {
		return nil, err
	}
	want, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, c.RawSubjectPublicKeyInfo) {
		return nil, errors.New("endorsement certificate is of another key")
	}
	return c, nil
}

// derLength is the length of the DER element at the start of b.
func derLength(b []byte) (int, bool) {
	if len(b) < 4 || b[0] != 0x30 || b[1] != 0x82 {
		return 0, false
	}
	n := 4 + int(b[2])<<8 + int(b[3])
	return n, n <= len(b)
}
