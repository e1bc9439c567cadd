package tpmattest

import (
	"crypto/rand"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Challenge is a secret that only the chip of an Enrolment can decrypt, and only
// while it holds that attestation key (Part 1, 24).
type Challenge struct {
	Credential []byte `json:"credential"` // TPM2B_ID_OBJECT's buffer
	Secret     []byte `json:"secret"`     // TPM2B_ENCRYPTED_SECRET's buffer
}

// MaxChallenge is the size of each part of a Challenge, in bytes.
const MaxChallenge = 512

// MakeCredential encrypts secret (1 to 32 bytes) to the chip. It needs no TPM: it
// is the verifier's side. It refuses an attestation key that could sign what the
// chip did not make, and an endorsement key that anybody could have made up.
func MakeCredential(e *Enrolment, secret []byte) (*Challenge, error) {
	if len(secret) < 1 || len(secret) > 32 {
		return nil, fmt.Errorf("credential: a secret of %d bytes", len(secret))
	}
	ek, err := e.ek()
	if err != nil {
		return nil, err
	}
	ak, err := ParseAK(e.AK)
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

// Activate has the chip decrypt a challenge with the loaded keys ek and ak: the
// proof that it holds both. Its session is gone afterwards.
func Activate(chip transport.TPM, ek, ak Key, c *Challenge) ([]byte, error) {
	if len(c.Credential) > MaxChallenge || len(c.Secret) > MaxChallenge {
		return nil, fmt.Errorf("credential: parts of %d and %d bytes are too long", len(c.Credential), len(c.Secret))
	}
	session, done, err := tpm2.PolicySession(chip, tpm2.TPMAlgSHA256, 32)
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }()
	_, err = tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session.Handle(), NonceTPM: session.NonceTPM()}.Execute(chip)
	if err != nil {
		return nil, err
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.Handle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ek.Handle, Name: ek.Name, Auth: session},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(chip)
	if err != nil {
		return nil, err
	}
	return r.CertInfo.Buffer, nil
}
