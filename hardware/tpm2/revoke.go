package tpm2

import (
	"context"
	"encoding/json"
	"fmt"

	"portcullis/hardware"
)

var _ hardware.Renewer = (*TPM)(nil)

// A blob holds while the revocation counter is at most what it was sealed for. Seal
// takes the counter as it is; SealAfter one more, so that the counter can be raised
// past every older blob when the new one is stored. No blob is ever further ahead.
const ahead = 1

// SealAfter is Seal for a blob that Revoke spares. Where an earlier Revoke was never
// called, for a blob among before, that is done first: it took the place of the others
// already. Reasons as for Seal.
func (t *TPM) SealAfter(ctx context.Context, label string, secret []byte, before []json.RawMessage) (json.RawMessage, error) {
	return t.seal(ctx, label, secret, func(now uint64) (uint64, error) {
		for _, j := range before {
			b, err := parseBlob(j)
			if err != nil || b.Revocation != t.cfg.Revocation || b.Most != now+ahead {
				continue // of another chip, or nothing that is open
			}
			if err := t.increment(t.cfg.Revocation); err != nil {
				return 0, err
			}
			now++
			break
		}
		return now + ahead, nil
	})
}

// Revoke makes the chip refuse every blob that it sealed before this one, for good.
// A blob that is not ahead of the counter has revoked them already.
func (t *TPM) Revoke(ctx context.Context, blob json.RawMessage) error {
	return t.do(ctx, "revoke", func() error {
		b, err := parseBlob(blob)
		if err != nil {
			return err
		}
		if b.Revocation != t.cfg.Revocation {
			return refuse(hardware.ReasonBadBlob, "sealed under counter %#x, this is %#x", b.Revocation, t.cfg.Revocation)
		}
		v, err := t.counter(t.cfg.Revocation)
		switch {
		case err != nil:
			return err
		case v == 0 || b.Most > v+ahead:
			return fmt.Errorf("counter %#x is %d, the blob is for %d: not sealed by this chip", b.Revocation, v, b.Most)
		case v < b.Most:
			return t.increment(t.cfg.Revocation)
		}
		return nil
	})
}

// Forget makes the chip refuse every blob that it sealed so far, for good: it
// raises the counter to which blobs are bound past all of them. A counter never goes
// back, not even when it is deleted and made again, so that copies of the blob and of
// the card are of no use either. blob may be empty; one of another configuration is refused.
func (t *TPM) Forget(ctx context.Context, blob json.RawMessage) error {
	return t.do(ctx, "forget", func() error {
		if len(blob) > 0 {
			b, err := parseBlob(blob)
			if err != nil {
				return err
			}
			if b.Revocation != t.cfg.Revocation {
				return refuse(hardware.ReasonBadBlob, "sealed under counter %#x, this is %#x", b.Revocation, t.cfg.Revocation)
			}
		}
		v, err := t.counter(t.cfg.Revocation)
		if err != nil {
			return err
		}
		if v == 0 {
			// Deleted by somebody: the new one starts above the old.
			_, err = t.startCounter(t.cfg.Revocation)
		} else {
			err = t.increment(t.cfg.Revocation)
		}
		for range ahead {
			if err == nil {
				err = t.increment(t.cfg.Revocation)
			}
		}
		return err
	})
}
