package tpm2

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"portcullis/hardware"

	"github.com/google/go-tpm/tpm2"
)

// Challenge is a secret that only the chip of an Enrolment can decrypt, and only
// while it holds that attestation key (Part 1, 24).
type Challenge struct {
	Credential []byte `json:"credential"` // TPM2B_ID_OBJECT's buffer
	Secret     []byte `json:"secret"`     // TPM2B_ENCRYPTED_SECRET's buffer
}

const maxChallenge = 512 // bytes of each part

// MakeCredential encrypts secret (1 to 32 bytes) to the chip. It needs no TPM: it
// is the verifier's side. It refuses an attestation key that could sign what the
// chip did not make, and an endorsement key that anybody could have made up.
func MakeCredential(e *Enrolment, secret []byte) (*Challenge, error) {
	if len(secret) < 1 || len(secret) > 32 {
		return nil, fmt.Errorf("credential: a secret of %d bytes", len(secret))
	}
	_, ek, err := e.ek()
	if err != nil {
		return nil, err
	}
	ak, err := e.ak()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil {
		return nil, err
	}
	to, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	credential, encrypted, err := tpm2.CreateCredential(rand.Reader, to, name.Buffer, secret)
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	return &Challenge{credential, encrypted}, nil
}

// ek returns the endorsement key, which must have the shape that chips make.
func (e *Enrolment) ek() (tpm2.TPMTPublic, *tpm2.TPMTPublic, error) {
	if e.Version != EnrolmentVersion {
		return tpm2.TPMTPublic{}, nil, fmt.Errorf("enrolment: version %d is not %d", e.Version, EnrolmentVersion)
	}
	template, _, err := ekTemplate(e.EKKind)
	if err != nil {
		return template, nil, err
	}
	p, err := unmarshalPublic(e.EK)
	if err != nil {
		return template, nil, fmt.Errorf("endorsement key: %w", err)
	}
	if !sameTemplate(*p, template) {
		return template, nil, errors.New("endorsement key is not made from TCG's template")
	}
	return template, p, nil
}

// ak returns the attestation key, which must be one that signs only what its chip
// made.
func (e *Enrolment) ak() (*tpm2.TPMTPublic, error) { return parseAK(e.AK) }

func parseAK(b []byte) (*tpm2.TPMTPublic, error) {
	p, err := unmarshalPublic(b)
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	if !sameTemplate(*p, akTemplate()) {
		return nil, errors.New("attestation key is not a restricted signing key of ours")
	}
	if _, err := publicECDSA(p); err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	return p, nil
}

// ActivateCredential decrypts a challenge: the proof that this chip holds both
// keys. Reason: root-foreign-blob, when it is for another chip or another key.
func (t *TPM) ActivateCredential(ctx context.Context, kind EKKind, c *Challenge) ([]byte, error) {
	if len(c.Credential) > maxChallenge || len(c.Secret) > maxChallenge {
		return nil, fmt.Errorf("credential: parts of %d and %d bytes are too long", len(c.Credential), len(c.Secret))
	}
	var secret []byte
	err := t.do(ctx, "activate credential", func() error {
		ak, err := t.readAK()
		if err != nil {
			return err
		}
		if ak == nil {
			return errors.New("this chip has no attestation key yet: it is not enrolled")
		}
		template, _, err := ekTemplate(kind)
		if err != nil {
			return err
		}
		ek, err := t.makePrimary(tpm2.TPMRHEndorsement, template, 0, false)
		if err != nil {
			return err
		}
		defer t.release(ek)
		session, done, err := tpm2.PolicySession(t.link, tpm2.TPMAlgSHA256, nonceSize)
		if err != nil {
			return err
		}
		defer func() { _ = done() }()
		_, err = tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: session.Handle(), NonceTPM: session.NonceTPM()}.Execute(t.link)
		if err != nil {
			return err
		}
		r, err := tpm2.ActivateCredential{
			ActivateHandle: tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
			KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: session},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
		}.Execute(t.link)
		if err != nil {
			return as(err, hardware.ReasonForeignBlob, tpm2.TPMRCValue, tpm2.TPMRCSize, tpm2.TPMRCInsufficient, tpm2.TPMRCECCPoint)
		}
		secret = r.CertInfo.Buffer
		return nil
	})
	return secret, err
}
