package tpm2

import (
	"context"
	"errors"

	"portcullis/hardware"
)

// Past is what a chip remembers of earlier enrolments. A card that says nothing of
// them is a new one, or one that somebody has wiped. Who may write to the chip can
// clear it: an empty past proves nothing.
type Past struct {
	Attested bool   // it keeps our attestation key: an enrolment was finished with it
	Sealed   uint64 // the counter that the first Seal starts and Forget raises; 0: it has sealed nothing for us
	Released uint64 // the counter of accepted releases, 0: none
}

// Past looks and changes nothing. What others keep at our handles is not our past.
func (t *TPM) Past(ctx context.Context) (Past, error) {
	var p Past
	err := t.do(ctx, "look for earlier enrolments", func() error {
		ak, err := t.readAK()
		if ours(err) != nil {
			return err
		}
		p.Attested = ak != nil
		for index, v := range map[uint32]*uint64{t.cfg.Revocation: &p.Sealed, t.cfg.NVIndex: &p.Released} {
			if *v, err = t.counter(index); ours(err) != nil {
				return err
			}
		}
		return nil
	})
	return p, err
}

// ours is nil also where somebody else uses the handle.
func ours(err error) error {
	var e *hardware.Error
	if errors.As(err, &e) && e.Reason == ReasonHandleForeign {
		return nil
	}
	return err
}
