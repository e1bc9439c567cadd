package systemdtoken

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"

	"portcullis/hardware"
	hwtpm2 "portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

// Enrolment says to what a new slot is bound; at least one kind of registers, all
// of the SHA-256 bank.
type Enrolment struct {
	PCRs          []int          // to their values now
	PublicKey     *rsa.PublicKey // to what this key signs for PublicKeyPCRs
	PublicKeyPCRs []int
	// Unmeasured permits registers of PCRs that hold nothing, which bind nothing.
	Unmeasured bool
}

// secretSize is systemd's, in bytes.
const secretSize = 32

// Enrol seals a new secret and returns the token for it and the LUKS passphrase
// to put into a keyslot (PBKDF2-SHA-512 with 1000 iterations is systemd's choice;
// the secret has 256 bits). The caller sets Keyslots before it encodes the token.
// Reason: pcr-empty.
func Enrol(ctx context.Context, chip *hwtpm2.TPM, e Enrolment) (*Token, []byte, error) {
	t := &Token{Bank: tpm2.TPMAlgSHA256, PCRs: slices.Sorted(slices.Values(e.PCRs)), PublicKeyPCRs: slices.Sorted(slices.Values(e.PublicKeyPCRs))}
	if len(e.PCRs)+len(e.PublicKeyPCRs) == 0 || (e.PublicKey != nil) != (len(e.PublicKeyPCRs) > 0) {
		return nil, nil, errors.New("enrol: no registers, or a policy key without registers")
	}
	policy, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, nil, err
	}
	if e.PublicKey != nil {
		if err := t.bindSigned(policy, e.PublicKey); err != nil {
			return nil, nil, err
		}
	}
	if len(t.PCRs) > 0 {
		if err := t.bindNow(ctx, policy, chip, e.Unmeasured); err != nil {
			return nil, nil, err
		}
	}
	t.PolicyHash = policy.Hash().Digest
	handle, public, err := chip.StorageKey(ctx)
	if err != nil {
		return nil, nil, err
	}
	if t.SRK, err = serialiseSRK(handle, public); err != nil {
		return nil, nil, err
	}
	secret, err := newSecret(ctx, chip)
	if err != nil {
		return nil, nil, err
	}
	defer clear(secret)
	o, err := chip.SealObject(ctx, [32]byte(t.PolicyHash), secret)
	if err != nil {
		return nil, nil, err
	}
	t.Public, t.Private = o.Public, o.Private
	return t, passphrase(secret), nil
}

func (t *Token) bindSigned(policy *tpm2.PolicyCalculator, pub *rsa.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	t.PublicKey = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	key, err := parseSigner(t.PublicKey)
	if err != nil {
		return err
	}
	name, err := tpm2.ObjectName(&key.public)
	if err != nil {
		return err
	}
	return tpm2.PolicyAuthorize{KeySign: *name}.Update(policy)
}

func (t *Token) bindNow(ctx context.Context, policy *tpm2.PolicyCalculator, chip *hwtpm2.TPM, unmeasured bool) error {
	values, err := chip.ReadPCRs(ctx, t.PCRs)
	if err != nil {
		return err
	}
	composite := sha256.New()
	numbers := make([]uint, 0, len(t.PCRs))
	for _, i := range t.PCRs {
		v := values[i]
		if tpmpolicy.Empty(v) && !unmeasured {
			return &hardware.Error{Reason: hwtpm2.ReasonPCREmpty, Err: errors.New("a register is empty: it would bind nothing")}
		}
		composite.Write(v[:])
		numbers = append(numbers, uint(i))
	}
	return tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: composite.Sum(nil)}, Pcrs: tpm2.TPMLPCRSelection{
		PCRSelections: []tpm2.TPMSPCRSelection{{Hash: t.Bank, PCRSelect: tpm2.PCClientCompatible.PCRs(numbers...)}}}}.Update(policy)
}

// newSecret takes from the kernel and from the chip: it is as good as the better.
func newSecret(ctx context.Context, chip *hwtpm2.TPM) ([]byte, error) {
	secret := make([]byte, secretSize)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	more, err := chip.Random(ctx, secretSize)
	if err != nil {
		return nil, err
	}
	defer clear(more)
	for i := range secret {
		secret[i] ^= more[i]
	}
	return secret, nil
}
