package tpm2

import (
	"context"
	"errors"

	"portcullis/hardware"
	"portcullis/hardware/tpmattest"

	"github.com/google/go-tpm/tpm2"
)

// Challenge is a secret that only the chip of an Enrolment can decrypt.
type Challenge = tpmattest.Challenge

// MakeCredential is tpmattest.MakeCredential.
func MakeCredential(e *Enrolment, secret []byte) (*Challenge, error) {
	return tpmattest.MakeCredential(e, secret)
}

// ActivateCredential decrypts a challenge: the proof that this chip holds both
// keys. Reason: root-foreign-blob, when it is for another chip or another key.
func (t *TPM) ActivateCredential(ctx context.Context, kind EKKind, c *Challenge) ([]byte, error) {
	var secret []byte
	err := t.do(ctx, "activate credential", func() error {
		ak, err := t.readAK()
		if err != nil {
			return err
		}
		if ak == nil {
			return errors.New("this chip has no attestation key yet: it is not enrolled")
		}
		template, _, err := tpmattest.EKTemplate(kind)
		if err != nil {
			return err
		}
		ek, err := t.makePrimary(tpm2.TPMRHEndorsement, template, 0, false)
		if err != nil {
			return err
		}
		defer t.release(ek)
		secret, err = tpmattest.Activate(t.link, *ek, *ak, c)
		return as(err, hardware.ReasonForeignBlob, tpm2.TPMRCValue, tpm2.TPMRCSize, tpm2.TPMRCInsufficient, tpm2.TPMRCECCPoint)
	})
	return secret, err
}
