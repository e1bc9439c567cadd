package piinit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// recoveryTries is how many lines a person may type before the machine restarts.
const recoveryTries = 3

// recoveryPrompt is shown with the seconds left.
const recoveryPrompt = "portcullis: type the recovery key (%d s left): "

// unlockByPerson asks for the recovery key. What is typed is not echoed.
func (b *Boot) unlockByPerson(ctx context.Context, h *luks2.Header) (*volume, error) {
	slots, others := recoverySlots(h)
	if len(slots)+len(others) == 0 {
		return nil, boot.Failf(ReasonVolume, "the header has no keyslot for a recovery key")
	}
	deadline := time.Now().Add(b.Times.Recovery)
	for range recoveryTries {
		left := time.Until(deadline)
		if left <= 0 {
			break
		}
		b.Allow(left + stepLimit)
		line, err := b.Console.Ask(ctx, recoveryPrompt, left, true)
		if err != nil {
			return nil, boot.Failf(ReasonUnlock, "no recovery key: %w", err)
		}
		v, err := b.tryTyped(h, line, slots, others)
		clear(line)
		if err == nil {
			return v, nil
		}
		b.Log.Note("recovery", "problem", err)
	}
	return nil, boot.Failf(ReasonUnlock, "no valid recovery key in %d tries or %s", recoveryTries, b.Times.Recovery)
}

// recoverySlots returns the keyslots of recovery keys, and those that no token
// names: ordinary passphrases of a volume that cryptsetup made.
func recoverySlots(h *luks2.Header) (recovery, others []int) {
	named := map[int]bool{}
	for _, t := range h.Tokens() {
		for _, s := range t.Slots {
			named[s] = true
			if t.Type == systemdRecovery {
				recovery = append(recovery, s)
			}
		}
	}
	for _, s := range h.Slots() {
		if !named[s.ID] {
			others = append(others, s.ID)
		}
	}
	return recovery, others
}

func (b *Boot) tryTyped(h *luks2.Header, line []byte, slots, others []int) (*volume, error) {
	key, err := luks2.ParseRecoveryKey(line)
	if err == nil {
		defer key.Wipe()
		var v *volume
		if v, err = b.tryPassphrase(h, key.Passphrase(), slots); err == nil {
			return v, nil
		}
	}
	if len(others) == 0 || len(line) == 0 {
		return nil, err
	}
	v, oerr := b.tryPassphrase(h, line, others)
	return v, join(oerr, err)
}

// join returns nil when the first is nil.
func join(first, second error) error {
	if first == nil {
		return nil
	}
	return errors.Join(first, second)
}

// enrolWord is what a person types to agree.
const enrolWord = "ENROL"

// confirm asks for enrolWord; anything else, or silence, is no.
func (b *Boot) confirm(ctx context.Context, why, purpose string) bool {
	b.Allow(b.Times.Enrol + stepLimit)
	prompt := fmt.Sprintf("portcullis: %s: type %s to %s (%%d s left): ", why, enrolWord, purpose)
	line, err := b.Console.Ask(ctx, prompt, b.Times.Enrol, false)
	return err == nil && string(line) == enrolWord
}
