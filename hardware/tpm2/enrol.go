package tpm2

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"

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
	nvCertRSA = 0x01C00002
	nvCertECC = 0x01C0000A
)

// maxCertificate caps an endorsement certificate, in bytes.
const maxCertificate = 4096

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

func ekTemplate(k EKKind) (tpm2.TPMTPublic, uint32, error) {
	switch k {
	case EKRSA:
		return tpm2.RSAEKTemplate, nvCertRSA, nil
	case EKECC:
		return tpm2.ECCEKTemplate, nvCertECC, nil
	}
	return tpm2.TPMTPublic{}, 0, fmt.Errorf("endorsement key %q is not known", k)
}

func akTemplate() tpm2.TPMTPublic { return signTemplate("portcullis/attestation-key/v1", true) }

// readAK returns our attestation key, nil where its handle is free.
func (t *TPM) readAK() (*key, error) {
	k, err := t.readKey(t.cfg.AK)
	if err != nil || k == nil {
		return nil, err
	}
	if !sameTemplate(k.public, akTemplate()) {
		return nil, refuse(ReasonHandleForeign, "%#x holds something that is not an attestation key of ours", t.cfg.AK)
	}
	return k, nil
}

// Enrol makes the attestation key where its handle is free, keeps it there, and
// returns the public half of the chip's identity. With kind "" the endorsement key
// is the one that has a certificate, ECC where none has. It can be repeated.
// Reason: handle-foreign.
func (t *TPM) Enrol(ctx context.Context, kind EKKind) (*Enrolment, error) {
	var e *Enrolment
	err := t.do(ctx, "enrol", func() error {
		ak, err := t.readAK()
		if err == nil && ak == nil {
			ak, err = t.makePrimary(tpm2.TPMRHEndorsement, akTemplate(), t.cfg.AK, true)
		}
		if err != nil {
			return err
		}
		k, cert, err := t.chooseEK(kind)
		if err != nil {
			return err
		}
		template, _, err := ekTemplate(k)
		if err != nil {
			return err
		}
		ek, err := t.makePrimary(tpm2.TPMRHEndorsement, template, 0, false)
		if err != nil {
			return err
		}
		defer t.release(ek)
		e = &Enrolment{Version: EnrolmentVersion, EKKind: k, EK: tpm2.Marshal(ek.public), EKCert: cert, AK: tpm2.Marshal(ak.public)}
		return nil
	})
	return e, err
}

func (t *TPM) chooseEK(kind EKKind) (EKKind, []byte, error) {
	kinds := []EKKind{kind}
	if kind == "" {
		kinds = []EKKind{EKECC, EKRSA}
	}
	for _, k := range kinds {
		_, index, err := ekTemplate(k)
		if err != nil {
			return "", nil, err
		}
		cert, err := t.readNV(index, maxCertificate)
		if err != nil {
			return "", nil, err
		}
		if cert != nil || kind != "" {
			return k, cert, nil
		}
	}
	return EKECC, nil, nil
}

// readNV returns what an index holds, nil where there is none or it is not
// readable for everybody.
func (t *TPM) readNV(index uint32, most int) ([]byte, error) {
	r, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: %w", index, err)
	}
	p, err := r.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	size := int(p.DataSize)
	if size > most {
		return nil, fmt.Errorf("NV index %#x: %d bytes are more than %d", index, size, most)
	}
	if !p.Attributes.AuthRead || !p.Attributes.Written {
		return nil, nil
	}
	const chunk = 512 // every chip's MAX_NV_BUFFER_SIZE is at least that
	out := make([]byte, 0, size)
	for len(out) < size {
		h := tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Name: r.NVName, Auth: tpm2.PasswordAuth(nil)}
		d, err := tpm2.NVRead{AuthHandle: h, NVIndex: tpm2.NamedHandle{Handle: h.Handle, Name: h.Name},
			Size: uint16(min(chunk, size-len(out))), Offset: uint16(len(out))}.Execute(t.link)
		if err != nil {
			return nil, fmt.Errorf("NV index %#x: %w", index, err)
		}
		if len(d.Data.Buffer) == 0 || len(d.Data.Buffer) > size-len(out) {
			return nil, fmt.Errorf("NV index %#x: %d bytes at %d of %d", index, len(d.Data.Buffer), len(out), size)
		}
		out = append(out, d.Data.Buffer...)
	}
	return out, nil
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
	_, ek, err := e.ek()
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

// publicECDSA returns the P-256 key of a signing object.
func publicECDSA(p *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
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
