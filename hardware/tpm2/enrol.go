package tpm2

import (
	"context"

	"portcullis/hardware/tpmattest"

	"github.com/google/go-tpm/tpm2"
)

// What an enrolment is, is package tpmattest's.
type (
	EKKind    = tpmattest.EKKind
	Enrolment = tpmattest.Enrolment
)

// Kinds of endorsement keys.
const (
	EKRSA = tpmattest.EKRSA
	EKECC = tpmattest.EKECC
)

// EnrolmentVersion is the only version of an Enrolment.
const EnrolmentVersion = tpmattest.EnrolmentVersion

// readAK returns our attestation key, nil where its handle is free.
func (t *TPM) readAK() (*key, error) {
	k, err := t.readKey(t.cfg.AK)
	if err != nil || k == nil {
		return nil, err
	}
	if !tpmattest.SameTemplate(k.Public, tpmattest.AKTemplate()) {
		return nil, refuse(ReasonHandleForeign, "%#x holds something that is not an attestation key of ours", t.cfg.AK)
	}
	return k, nil
}

// keepAK returns our attestation key, and makes it where its handle is free.
func (t *TPM) keepAK() (*key, error) {
	ak, err := t.readAK()
	if err == nil && ak == nil {
		ak, err = t.makePrimary(tpm2.TPMRHEndorsement, tpmattest.AKTemplate(), t.cfg.AK, true)
	}
	return ak, err
}

// KeepAttestationKey makes the attestation key where its handle is free, and keeps it
// there: for Past, and for Enrol, which returns its public half. Reason: handle-foreign.
func (t *TPM) KeepAttestationKey(ctx context.Context) error {
	return t.do(ctx, "keep the attestation key", func() error {
		_, err := t.keepAK()
		return err
	})
}

// Enrol makes the attestation key where its handle is free, keeps it there, and
// returns the public half of the chip's identity. With kind "" the endorsement key
// is the one that has a certificate, ECC where none has. It can be repeated.
// Reason: handle-foreign.
func (t *TPM) Enrol(ctx context.Context, kind EKKind) (*Enrolment, error) {
	var e *Enrolment
	err := t.do(ctx, "enrol", func() error {
		ak, err := t.keepAK()
		if err != nil {
			return err
		}
		k, cert, err := tpmattest.ChooseEK(t.link, kind)
		if err != nil {
			return err
		}
		template, _, err := tpmattest.EKTemplate(k)
		if err != nil {
			return err
		}
		ek, err := t.makePrimary(tpm2.TPMRHEndorsement, template, 0, false)
		if err != nil {
			return err
		}
		defer t.release(ek)
		e = &Enrolment{Version: EnrolmentVersion, EKKind: k, EK: tpm2.Marshal(ek.Public), EKCert: cert, AK: tpm2.Marshal(ak.Public)}
		return nil
	})
	return e, err
}
