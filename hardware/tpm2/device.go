package tpm2

import (
	"context"
	"crypto/ecdsa"

	"portcullis/hardware/tpmattest"

	"github.com/google/go-tpm/tpm2"
)

// deviceTemplate is an ordinary signing key of this chip, always the same one. The
// attestation key cannot sign digests from outside: it is restricted so that
// nobody gets a forged quote signed.
func deviceTemplate() tpm2.TPMTPublic {
	return tpmattest.SignTemplate("portcullis/device-key/v1", false)
}

// DeviceKey returns the public key that Sign's signatures verify with.
func (t *TPM) DeviceKey(ctx context.Context) (*ecdsa.PublicKey, error) {
	var pub *ecdsa.PublicKey
	err := t.do(ctx, "device key", func() error {
		k, err := t.makePrimary(tpm2.TPMRHEndorsement, deviceTemplate(), 0, false)
		if err != nil {
			return err
		}
		defer t.release(k)
		pub, err = tpmattest.PublicECDSA(&k.Public)
		return err
	})
	return pub, err
}

// Sign signs a SHA-256 digest with the device key (ECDSA P-256, ASN.1).
func (t *TPM) Sign(ctx context.Context, digest [32]byte) ([]byte, error) {
	var signature []byte
	err := t.do(ctx, "sign", func() error {
		k, err := t.makePrimary(tpm2.TPMRHEndorsement, deviceTemplate(), 0, false)
		if err != nil {
			return err
		}
		defer t.release(k)
		r, err := tpm2.Sign{
			KeyHandle:  tpm2.AuthHandle{Handle: k.Handle, Name: k.Name, Auth: tpm2.PasswordAuth(nil)},
			Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(t.link)
		if err != nil {
			return err
		}
		signature, err = tpmattest.ASN1Signature(&r.Signature)
		return err
	})
	return signature, err
}
