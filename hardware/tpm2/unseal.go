package tpm2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"

	"portcullis/hardware"
	"portcullis/hardware/tpmattest"
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
		// Before anything is encrypted to the key that answers: on a bus anybody can.
		srk, err := t.parent(&Object{SRK: b.SRK})
		if err != nil {
			return err
		}
		defer t.release(srk)
		if secret, err = t.unseal(srk, object, b, branch, label); err != nil {
			if why := t.explain(branch, b); why != nil {
				return why
			}
		}
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

// explain finds out in the clear what the chip has refused, because a chip does not
// say which register it is. It is asked then only: each question costs milliseconds.
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
	data, err := t.open(srk, object, &Object{Private: b.Private}, func(p *PolicyRun) error {
		if err := t.satisfy(p, branch); err != nil {
			return err
		}
		return p.counter(b.Revocation, b.Most)
	})
	if err != nil {
		return nil, err
	}
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
func (t *TPM) satisfy(p *PolicyRun, branch *tpmpolicy.Signed) error {
	numbers := tpmpolicy.Numbers(branch.PCRs)
	composite := sha256.New()
	for _, i := range numbers {
		v := branch.PCRs[i]
		composite.Write(v[:])
	}
	_, err := tpm2.PolicyPCR{PolicySession: p.s.Handle(), PcrDigest: tpm2.TPM2BDigest{Buffer: composite.Sum(nil)}, Pcrs: tpmattest.Selection(numbers...)}.Execute(t.link)
	if err != nil {
		return fmt.Errorf("registers: %w", as(err, hardware.ReasonPolicy, tpm2.TPMRCValue))
	}
	if err := p.counter(branch.NVIndex, branch.Sequence); err != nil {
		return err
	}
	return t.authorize(p, branch)
}
