package tpm2

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"

	"github.com/google/go-tpm/tpm2"
)

// deviceTemplate is an ordinary signing key of this chip, always the same one. The
// attestation key cannot sign digests from outside: it is restricted so that
// nobody gets a forged quote signed.
func deviceTemplate() tpm2.TPMTPublic {
	return signTemplate("portcullis/device-key/v1", false)
}

// signTemplate of a primary ECDSA P-256 key under the endorsement hierarchy. The
// label in the unique field keeps it apart from other software's keys.
func signTemplate(label string, restricted bool) tpm2.TPMTPublic {
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

// DeviceKey returns the public key that Sign's signatures verify with.
func (t *TPM) DeviceKey(ctx context.Context) (*ecdsa.PublicKey, error) {
	var pub *ecdsa.PublicKey
	err := t.do(ctx, "device key", func() error {
		k, err := t.makePrimary(tpm2.TPMRHEndorsement, deviceTemplate(), 0, false)
		if err != nil {
			return err
		}
		defer t.release(k)
		pub, err = publicECDSA(&k.public)
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
			KeyHandle:  tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)},
			Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(t.link)
		if err != nil {
			return err
		}
		signature, err = asn1Signature(&r.Signature)
		return err
	})
	return signature, err
}
