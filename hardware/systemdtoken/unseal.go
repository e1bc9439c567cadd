package systemdtoken

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"portcullis/hardware"
	hwtpm2 "portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/pbkdf2"
)

// Reasons of this package.
const (
	ReasonPINNeeded hardware.Reason = "pin-needed" // the token wants a PIN and none was given
	ReasonPINWrong  hardware.Reason = "pin-wrong"  // the chip counts wrong ones and locks itself
)

// Options are what a token may need beside the chip.
type Options struct {
	Signatures *Signatures // for a signed policy
	PIN        []byte
	// Unmeasured permits registers that hold nothing, and none at all without a PIN:
	// the chip then gives the secret to any software.
	Unmeasured bool
}

// pinRounds are systemd's PBKDF2 rounds over a PIN.
const pinRounds = 10000

// Unseal asks the chip for the secret and returns the LUKS passphrase that
// systemd makes of it. Reasons: root-policy, root-foreign-blob, policy-signature
// (nothing signed for the registers as they are), pin-needed, pin-wrong,
// root-lockout, pcr-empty.
func Unseal(ctx context.Context, chip *hwtpm2.TPM, t *Token, opt Options) ([]byte, error) {
	if t.PIN && len(opt.PIN) == 0 {
		return nil, &hardware.Error{Reason: ReasonPINNeeded, Err: errors.New("the token wants a PIN")}
	}
	if err := t.bound(ctx, chip, opt); err != nil {
		return nil, err
	}
	o := &hwtpm2.Object{Public: t.Public, Private: t.Private, Parent: oldParent(t.PrimaryRSA)}
	if len(t.SRK) > 0 {
		_, name, err := t.srk()
		if err != nil {
			return nil, err
		}
		o.SRK = name
	}
	if t.PIN {
		o.Auth = pinAuth(opt.PIN, t.Salt)
		defer clear(o.Auth)
	}
	data, err := chip.UnsealObject(ctx, o, func(p *hwtpm2.PolicyRun) error { return t.satisfy(p, opt.Signatures) })
	if t.PIN && errors.Is(err, tpm2.TPMRCAuthFail) {
		return nil, &hardware.Error{Reason: ReasonPINWrong, Err: err}
	}
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return passphrase(data), nil
}

// bound refuses a token that any software opens: systemd's own default binds to
// register 7, which nobody fills on a Pi.
func (t *Token) bound(ctx context.Context, chip *hwtpm2.TPM, opt Options) error {
	if opt.Unmeasured {
		return nil
	}
	registers := slices.Concat(t.PCRs, t.PublicKeyPCRs)
	if len(registers) == 0 && !t.PIN {
		return &hardware.Error{Reason: hwtpm2.ReasonPCREmpty, Err: errors.New("the token is bound to no register: any software opens it")}
	}
	values, err := chip.ReadPCRs(ctx, registers)
	if err != nil {
		return err
	}
	for i, v := range values {
		if tpmpolicy.Empty(v) {
			return &hardware.Error{Reason: hwtpm2.ReasonPCREmpty, Err: fmt.Errorf("register %d is empty: the token binds nothing", i)}
		}
	}
	return nil
}

// satisfy runs the policy in systemd's order: signed registers, literal ones, PIN.
func (t *Token) satisfy(p *hwtpm2.PolicyRun, signatures *Signatures) error {
	if len(t.PublicKeyPCRs) > 0 {
		if err := t.authorize(p, signatures); err != nil {
			return err
		}
	}
	if len(t.PCRs) > 0 {
		if err := p.PCRs(t.Bank, t.PCRs); err != nil {
			return err
		}
	}
	if t.PIN {
		if err := p.AuthValue(); err != nil {
			return err
		}
	}
	digest, err := p.Digest()
	if err != nil {
		return err
	}
	if !bytes.Equal(digest, t.PolicyHash) {
		return &hardware.Error{Reason: hardware.ReasonPolicy, Err: fmt.Errorf("registers %v are not as at enrolment: policy %x, the token has %x", t.PCRs, digest, t.PolicyHash)}
	}
	return nil
}

func (t *Token) authorize(p *hwtpm2.PolicyRun, signatures *Signatures) error {
	key, err := parseSigner(t.PublicKey)
	if err != nil {
		return err
	}
	if err := p.PCRs(t.Bank, t.PublicKeyPCRs); err != nil {
		return err
	}
	approved, err := p.Digest()
	if err != nil {
		return err
	}
	sig := signatures.find(t.Bank, t.PublicKeyPCRs, key.fingerprint, approved)
	if sig == nil {
		return &hardware.Error{Reason: hwtpm2.ReasonPolicyFile, Err: fmt.Errorf("no signature for registers %v as they are (policy %x)", t.PublicKeyPCRs, approved)}
	}
	return p.Authorize(key.public, rsaSignature(sig), approved, nil)
}

// passphrase is what systemd puts into the keyslot: base64 of the secret.
func passphrase(secret []byte) []byte {
	b := make([]byte, base64.StdEncoding.EncodedLen(len(secret)))
	base64.StdEncoding.Encode(b, secret)
	return b
}

// pinAuth is the object's password: the digest of the PIN, since systemd 253 of a
// salted and slowed PIN. The chip counts no zero octets at the end.
func pinAuth(pin, salt []byte) []byte {
	if len(salt) > 0 {
		slow := pbkdf2.Key(pin, salt, pinRounds, sha256.Size, sha256.New)
		defer clear(slow)
		pin = passphrase(slow)
		defer clear(pin)
	}
	d := sha256.Sum256(pin)
	return bytes.TrimRight(d[:], "\x00")
}
