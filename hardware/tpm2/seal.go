package tpm2

import (
	"context"
	"encoding/json"
	"fmt"

	"portcullis/hardware/tpmpolicy"
)

// Limits of Seal, in bytes.
const (
	MaxSecret = 64
	MaxLabel  = 64
)

// nonceSize of sessions, in bytes.
const nonceSize = 32

// Seal binds a secret to this chip, to the platform and to what the policy key
// signs for it. Both counters are started where they are missing. It does not try
// the policy: the caller unseals once while it still holds.
// Reasons: pcr-empty, policy-signature, counter-ahead, handle-foreign.
func (t *TPM) Seal(ctx context.Context, label string, secret []byte) (json.RawMessage, error) {
	return t.seal(ctx, label, secret, func(now uint64) (uint64, error) { return now, nil })
}

// seal binds the blob to what bound makes of the revocation counter's value.
func (t *TPM) seal(ctx context.Context, label string, secret []byte, bound func(now uint64) (most uint64, err error)) (json.RawMessage, error) {
	if len(secret) < 1 || len(secret) > MaxSecret || len(label) < 1 || len(label) > MaxLabel {
		return nil, fmt.Errorf("seal: a secret of %d bytes under a label of %d is not 1 to %d under 1 to %d", len(secret), len(label), MaxSecret, MaxLabel)
	}
	var blob json.RawMessage
	err := t.do(ctx, "seal", func() error {
		branch, err := t.branch()
		if err != nil {
			return err
		}
		if err := t.measured(branch); err != nil {
			return err
		}
		most, err := t.startCounters(branch.Sequence)
		if err == nil {
			most, err = bound(most)
		}
		if err != nil {
			return err
		}
		policy, err := tpmpolicy.SealPolicy(t.cfg.PolicyKey, t.cfg.Platform)
		if err != nil {
			return err
		}
		srk, err := t.storageKey(true)
		if err != nil {
			return err
		}
		defer t.release(srk)
		data := append(labelDigest(label), secret...)
		defer clear(data)
		o, err := t.create(srk, sealTemplate(tpmpolicy.Counted(policy, t.cfg.Revocation, most)), data)
		if err != nil {
			return err
		}
		blob, err = (&sealed{Version: BlobVersion, Platform: t.cfg.Platform, SRK: o.SRK, Revocation: t.cfg.Revocation,
			Most: most, Public: o.Public, Private: o.Private}).encode()
		return err
	})
	return blob, err
}

// measured refuses to call something protected that nobody measured.
func (t *TPM) measured(b *tpmpolicy.Signed) error {
	if t.cfg.Unmeasured {
		return nil
	}
	now, err := t.readPCRs(tpmpolicy.Numbers(b.PCRs))
	if err != nil {
		return err
	}
	for i, v := range now {
		if tpmpolicy.Empty(v) {
			return refuse(ReasonPCREmpty, "register %d is empty: nobody measured what runs, the policy would bind nothing", i)
		}
	}
	return nil
}

// startCounters returns the value of the revocation counter. The counter of
// releases comes first: a chip starts a counter above all others, and releases
// count from 1.
func (t *TPM) startCounters(sequence uint64) (uint64, error) {
	v, err := t.counter(t.cfg.NVIndex)
	if err == nil && v == 0 {
		v, err = t.startCounter(t.cfg.NVIndex)
	}
	if err != nil {
		return 0, err
	}
	if v > sequence {
		return 0, counterAhead(v, sequence)
	}
	most, err := t.counter(t.cfg.Revocation)
	if err == nil && most == 0 {
		most, err = t.startCounter(t.cfg.Revocation)
	}
	return most, err
}

// branch returns the signed policy for this platform.
func (t *TPM) branch() (*tpmpolicy.Signed, error) {
	if t.cfg.PolicyKey == nil || t.cfg.Policy == nil {
		return nil, refuse(ReasonPolicyFile, "no policy key or no policy.json")
	}
	b := t.cfg.Policy.Branch(t.cfg.Platform)
	if b == nil {
		return nil, refuse(ReasonPolicyFile, "policy.json has nothing for platform %q", t.cfg.Platform)
	}
	if err := b.Verify(t.cfg.PolicyKey); err != nil {
		return nil, refuse(ReasonPolicyFile, "%w", err)
	}
	if b.NVIndex != t.cfg.NVIndex {
		return nil, refuse(ReasonPolicyFile, "policy.json counts at %#x, this chip at %#x", b.NVIndex, t.cfg.NVIndex)
	}
	return b, nil
}
