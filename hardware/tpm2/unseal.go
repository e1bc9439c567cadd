package tpm2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"

	"portcullis/hardware"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

// Unseal gives a secret back while the signed policy holds. Reasons: root-policy
// (other registers, older release, other platform), root-foreign-blob (another
// chip, or another key in place of the storage key), root-bad-blob,
// blob-forgotten, policy-signature, counter-ahead, root-busy, root-lockout.
func (t *TPM) Unseal(ctx context.Context, label string, blob json.RawMessage) ([]byte, error) {
	var secret []byte
	err := t.do(ctx, "unseal", func() error {
		b, err := parseBlob(blob)
		if err != nil {
			return err
		}
		branch, err := t.branch()
		if err != nil {
			return err
		}
		object, err := t.expected(b)
		if err != nil {
			return err
		}
		srk, err := t.storageKey(false)
		if err != nil {
			return err
		}
		defer t.release(srk)
		// Before anything is encrypted to that key: on a bus anybody can answer.
		if !bytes.Equal(srk.name.Buffer, b.SRK) {
			return refuse(hardware.ReasonForeignBlob, "sealed under storage key %x, this chip shows %x: another chip, or it was cleared", b.SRK, srk.name.Buffer)
		}
		if err := t.explain(branch, b); err != nil {
			return err
		}
		secret, err = t.unseal(srk, object, b, branch, label)
		return err
	})
	if err != nil {
		clear(secret)
		return nil, err
	}
	return secret, nil
}

// expected returns the object of a blob if it is bound as we bind.
func (t *TPM) expected(b *sealed) (*tpm2.TPMTPublic, error) {
	if b.Platform != t.cfg.Platform {
		return nil, refuse(hardware.ReasonPolicy, "sealed on platform %q, this is %q", b.Platform, t.cfg.Platform)
	}
	policy, err := tpmpolicy.SealPolicy(t.cfg.PolicyKey, t.cfg.Platform)
	if err != nil {
		return nil, err
	}
	policy = tpmpolicy.Counted(policy, b.Revocation, b.Most)
	object, err := b.object()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(object.AuthPolicy.Buffer, policy[:]) {
		return nil, refuse(hardware.ReasonPolicy, "sealed under another policy key or platform")
	}
	return object, nil
}

// explain finds out in the clear what the chip will refuse, because a chip does
// not say which register it is. It decides nothing that the chip would not.
func (t *TPM) explain(branch *tpmpolicy.Signed, b *sealed) error {
	now, err := t.readPCRs(tpmpolicy.Numbers(branch.PCRs))
	if err != nil {
		return err
	}
	for _, i := range tpmpolicy.Numbers(branch.PCRs) {
		if now[i] != branch.PCRs[i] {
			return refuse(hardware.ReasonPolicy, "register %d is %x, the release signed %x", i, now[i], branch.PCRs[i])
		}
	}
	v, err := t.counter(branch.NVIndex)
	if err != nil {
		return err
	}
	if v == 0 {
		return refuse(hardware.ReasonPolicy, "counter %#x is gone: somebody deleted it", branch.NVIndex)
	}
	if v > branch.Sequence {
		return refuse(hardware.ReasonPolicy, "%w", counterAhead(v, branch.Sequence))
	}
	r, err := t.counter(b.Revocation)
	if err != nil {
		return err
	}
	if r == 0 || r > b.Most {
		return refuse(ReasonForgotten, "counter %#x is %d, the blob holds up to %d", b.Revocation, r, b.Most)
	}
	return nil
}

func (t *TPM) unseal(srk *key, object *tpm2.TPMTPublic, b *sealed, branch *tpmpolicy.Signed, label string) ([]byte, error) {
	loaded, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: b.Private},
		InPublic:     tpm2.New2B(*object),
	}.Execute(t.link)
	if err != nil {
		err = as(err, hardware.ReasonBadBlob, tpm2.TPMRCSize, tpm2.TPMRCInsufficient, tpm2.TPMRCAttributes, tpm2.TPMRCType, tpm2.TPMRCHash, tpm2.TPMRCScheme)
		return nil, fmt.Errorf("load: %w", err)
	}
	defer t.flush(loaded.ObjectHandle)
	session, done, err := tpm2.PolicySession(t.link, tpm2.TPMAlgSHA256, nonceSize,
		tpm2.Salted(srk.handle, srk.public), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	defer func() { _ = done() }()
	if err := t.satisfy(session, branch); err != nil {
		return nil, err
	}
	if err := t.policyNV(session, b.Revocation, b.Most); err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(object)
	if err != nil {
		return nil, err
	}
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: *name, Auth: session}}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	data := r.OutData.Buffer
	defer clear(data)
	if len(data) <= labelSize || len(data) > labelSize+MaxSecret {
		return nil, refuse(hardware.ReasonBadBlob, "a secret of %d bytes", len(data)-labelSize)
	}
	if subtle.ConstantTimeCompare(data[:labelSize], labelDigest(label)) != 1 {
		return nil, refuse(hardware.ReasonBadBlob, "sealed under another label than %q", label)
	}
	return append([]byte(nil), data[labelSize:]...), nil
}

// satisfy runs the signed policy: registers, counter, then the signature over
// exactly that.
func (t *TPM) satisfy(session tpm2.Session, branch *tpmpolicy.Signed) error {
	numbers := tpmpolicy.Numbers(branch.PCRs)
	composite := sha256.New()
	for _, i := range numbers {
		v := branch.PCRs[i]
		composite.Write(v[:])
	}
	_, err := tpm2.PolicyPCR{PolicySession: session.Handle(), PcrDigest: tpm2.TPM2BDigest{Buffer: composite.Sum(nil)}, Pcrs: selection(numbers...)}.Execute(t.link)
	if err != nil {
		return fmt.Errorf("registers: %w", as(err, hardware.ReasonPolicy, tpm2.TPMRCValue))
	}
	if err := t.policyNV(session, branch.NVIndex, branch.Sequence); err != nil {
		return err
	}
	return t.authorize(session, branch)
}

func (t *TPM) policyNV(session tpm2.Session, index uint32, most uint64) error {
	operand := make([]byte, tpmpolicy.CounterSize)
	for i := range operand {
		operand[i] = byte(most >> (8 * (len(operand) - 1 - i)))
	}
	_, err := tpm2.PolicyNV{AuthHandle: counterAuth(index, true), NVIndex: counterHandle(index, true), PolicySession: session.Handle(),
		OperandB: tpm2.TPM2BOperand{Buffer: operand}, Operation: tpm2.TPMEOUnsignedLE}.Execute(t.link)
	if err != nil {
		return fmt.Errorf("counter %#x: %w", index, as(err, hardware.ReasonPolicy, tpm2.TPMRCHandle, tpm2.TPMRCNVUninitialized))
	}
	return nil
}
