package piinit

import (
	"context"
	"crypto"
	"crypto/hmac"
	"encoding/hex"
	"fmt"

	"portcullis/hardware"
	"portcullis/images/card"
	"portcullis/images/luks2"
)

// volume is an open volume: the header that was checked, and its key.
type volume struct {
	header *luks2.Header
	key    []byte
}

// HMAC with the volume key, of a hash that the chip's registers are made with.
func (v *volume) HMAC(h crypto.Hash, message []byte) ([]byte, error) {
	if !h.Available() {
		return nil, fmt.Errorf("hash %s is not available", h)
	}
	m := hmac.New(h.New, v.key)
	m.Write(message)
	return m.Sum(nil), nil
}

func (v *volume) wipe() { clear(v.key) }

// capChip measures which volume was opened and closes the TPM's policy until the next
// power cycle. From here on nothing can unseal, whatever takes over the system. That
// goes for a combined key as well; a Zymbit module alone cannot be closed.
func (b *Boot) capChip(ctx context.Context, v *volume, backend hardware.Backend) error {
	b.begin(StageCap)
	b.hand.Volume = v.header.UUID()
	if b.tpm == nil {
		b.capDropped(ctx, backend)
		return nil
	}
	if backend != hardware.BackendZymbit {
		b.lookAtCounter(ctx)
	}
	if err := b.tpm.MeasureVolumeKey(ctx, card.MapperCrypt, v.header.UUID(), v.HMAC); err != nil {
		return err
	}
	if err := b.tpm.Cap(ctx); err != nil {
		return err
	}
	if backend == hardware.BackendZymbit {
		b.Log.Note("zymbit", "closed", "no", "detail", zymbitLimits)
	}
	// Who keeps this value elsewhere sees when the volume is another one.
	pcr, err := b.tpm.ReadPCR(ctx, card.PCRVolumeKey)
	if err != nil {
		return err
	}
	b.hand.VolumePCR = hex.EncodeToString(pcr[:])
	b.Log.Stage(b.stage, "registers", fmt.Sprintf("%d,%d", card.PCRPhase, card.PCRVolumeKey), "volume", b.hand.VolumePCR)
	return nil
}

// lookAtCounter tells when the release stands on the card as committed and the chip has
// not counted it. The power may have failed between the two, or somebody may have
// edited the card's state, which is in the clear: it is counted by the health gate in
// the running system, and not here on the card's word alone.
func (b *Boot) lookAtCounter(ctx context.Context) {
	if b.decision.Trial {
		return
	}
	v, err := b.tpm.Counter(ctx)
	if err != nil {
		b.Log.Note("counter", "problem", err)
		return
	}
	if v > 0 && v < b.Info.Sequence { // 0: a chip that this card does not know yet
		b.hand.Uncounted = true
		b.Log.Note("uncounted", "release", b.Info.Sequence, "counted", v, "detail", "the chip has not counted this release: the health gate decides")
	}
}

// capDropped closes a chip that this boot has given up or never got hold of: its
// registers may hold what the policy wants, or nothing, and then the running system
// could put it there. What cannot be closed is said here and in the handover; a
// person has typed the recovery key by now, and would be asked in every boot.
func (b *Boot) capDropped(ctx context.Context, backend hardware.Backend) {
	t, err := b.Host.TPM(ctx, b.chip)
	if err != nil && hardware.ReasonOf(err) == hardware.ReasonAbsent {
		if backend == hardware.BackendZymbit {
			b.Log.Stage(b.stage, "chip", backend, "closed", "no", "detail", zymbitLimits)
		} else {
			b.Log.Stage(b.stage, "chip", "none")
		}
		return
	}
	if err == nil {
		err = t.Cap(ctx)
		t.Close()
	}
	if err != nil {
		b.hand.Uncapped = true
		b.Log.Note("uncapped", "problem", err, "detail", "the chip could not be closed: until the power is off, root in the running system may get its key")
		return
	}
	if backend == hardware.BackendZymbit {
		b.Log.Note("zymbit", "closed", "no", "detail", zymbitLimits)
	}
	b.Log.Stage(b.stage, "chip", "dropped", "registers", card.PCRPhase)
}
