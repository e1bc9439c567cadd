package piinit

import (
	"context"

	"portcullis/hardware"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// systemdTPM and systemdRecovery are the token types of systemd-cryptenroll.
const (
	systemdTPM      = "systemd-tpm2"
	systemdRecovery = "systemd-recovery"
)

// openVolume decides by the header whether this card is enrolled, and opens or
// enrols it.
func (b *Boot) openVolume(ctx context.Context) (Space, error) {
	b.begin(StageHeader)
	h, health, err := luks2.Repair(b.crypt, b.crypt.Size())
	switch luks2.ReasonOf(err) {
	case luks2.ReasonNoHeader, luks2.ReasonBadHeader:
		return b.firstBoot(ctx, true)
	}
	if err != nil {
		return nil, err
	}
	b.hand.HeaderRepaired = !health.Good()
	b.Log.Stage(b.stage, "uuid", h.UUID(), "repaired", yesNo(b.hand.HeaderRepaired))
	if unfinished(h) {
		return b.firstBoot(ctx, false)
	}
	if err := h.CheckLayout(); err != nil {
		return nil, err
	}
	h.Limits = spend()
	b.header = h
	return b.normalBoot(ctx, h)
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// unfinished tells an enrolment that was cut off, which holds nothing that is not on
// the card in the clear. Only what this program itself leaves behind half done counts: a
// header without any keyslot and token, or with our token in state enrolling. Anything
// else could be somebody's data.
func unfinished(h *luks2.Header) bool {
	tokens := h.Tokens()
	if len(tokens) == 0 && len(h.Slots()) == 0 {
		return true
	}
	enrolling := false
	for _, t := range tokens {
		// An enrolment has its own token only, until it is complete. One that cannot be
		// read is of a newer release, or damaged: no reason to wipe anything.
		ours, err := hardware.ParseToken(t.JSON)
		switch {
		case t.Type == systemdRecovery:
		case t.Type != hardware.TokenType, err != nil, ours.State != hardware.StateEnrolling:
			return false
		default:
			enrolling = true
		}
	}
	return enrolling
}

// normalBoot opens an enrolled volume and mounts the system of this boot's slot.
func (b *Boot) normalBoot(ctx context.Context, h *luks2.Header) (Space, error) {
	b.begin(StageUnlock)
	v, by, err := b.unlock(ctx, h)
	if err != nil {
		return nil, err
	}
	defer v.wipe()
	b.hand.UnlockedBy, b.hand.Recovered = by, by == card.UnlockedByRecovery
	if b.Log.Stage(b.stage, "by", by); by == card.UnlockedByZymbit {
		b.sayLimits(hardware.BackendZymbit)
	}
	space, err := b.Host.Map(v.header, v.key)
	if err != nil {
		return nil, err
	}

	b.begin(StageSlot)
	b.Log.Stage(b.stage, "slot", b.decision.Slot, "trial", yesNo(b.decision.Trial), "attempt", b.decision.Attempt)
	b.begin(StageVerity)
	if _, err := space.OpenVerity(b.decision.Slot, b.verity); err != nil {
		return nil, err
	}
	if err := space.MountSystem(); err != nil {
		return nil, err
	}
	b.Log.Stage(b.stage, "root", b.verity.RootHash)
	return space, b.capChip(ctx, v, hardware.Backend(b.hand.Backend))
}

// unlock tries what needs no person first. A trial that the chip refuses goes back
// to the other slot instead of waiting for somebody.
func (b *Boot) unlock(ctx context.Context, h *luks2.Header) (*volume, string, error) {
	v, by, err := b.unlockByToken(ctx, h)
	if err == nil {
		return v, by, nil
	}
	err = reasoned(err)
	b.hand.ChipProblem = string(boot.ReasonOf(err))
	if b.decision.Trial {
		if boot.ReasonOf(err) == ReasonNotReset {
			// No fault of the release, and the other one would get the key as little.
			if rerr := b.giveBack(); rerr != nil {
				b.Log.Note("trial", "problem", rerr)
			}
		}
		return nil, "", err
	}
	b.Log.Failed(b.stage, err)
	v, rerr := b.unlockByPerson(ctx, h)
	if rerr != nil {
		return nil, "", boot.Failf(ReasonUnlock, "%w; %w", err, rerr)
	}
	return v, card.UnlockedByRecovery, nil
}

// giveBack takes this boot's attempt of the trial off the count.
func (b *Boot) giveBack() error {
	s, err := b.conf.State()
	if err != nil || s.Trial == nil || s.Trial.Attempts == 0 {
		return err
	}
	t := *s.Trial
	t.Attempts--
	s.Trial = &t
	return b.conf.SetState(s)
}

func (b *Boot) unlockByToken(ctx context.Context, h *luks2.Header) (*volume, string, error) {
	var problem error
	for _, t := range h.Tokens() {
		var pass []byte
		var err error
		by := ""
		switch t.Type {
		case hardware.TokenType:
			pass, by, err = b.unseal(ctx, h, t)
		case systemdTPM:
			by = card.UnlockedBySystemd
			if err = b.noChip; err == nil {
				b.use(hardware.BackendTPM2)
				pass, err = b.Host.SystemdToken(ctx, t.JSON)
			}
		default:
			continue
		}
		if err == nil {
			var v *volume
			v, err = b.tryPassphrase(h, pass, t.Slots)
			clear(pass)
			if err == nil {
				return v, by, nil
			}
		}
		if problem == nil {
			problem = err
		}
	}
	if problem == nil {
		problem = boot.Failf(ReasonVolume, "the header has no token that this release knows")
	}
	return nil, "", problem
}

// unseal asks the chips that our token names for its passphrase.
func (b *Boot) unseal(ctx context.Context, h *luks2.Header, t luks2.Token) (pass []byte, by string, err error) {
	token, err := hardware.ParseToken(t.JSON)
	if err != nil {
		return nil, "", boot.Failf(ReasonVolume, "%w", err)
	}
	root, err := b.keeperOf(token)
	if err != nil {
		return nil, "", err
	}
	if token.Backend != hardware.BackendTPM2 {
		b.Allow(moduleLimit)
	}
	secret, err := root.Unseal(ctx, card.SealLabel(h.UUID()), token.Blob)
	if err != nil {
		return nil, "", err
	}
	defer clear(secret)
	return card.ChipPassphrase(secret), opened[token.Backend], nil
}

// tryPassphrase proves a passphrase with the keyslots given, against the digest of the
// header that was checked. Those that would take more than spend allows are refused.
func (b *Boot) tryPassphrase(h *luks2.Header, pass []byte, slots []int) (*volume, error) {
	if len(slots) == 0 {
		return nil, boot.Failf(boot.Reason(luks2.ReasonNoSlot), "no keyslot belongs to it")
	}
	key, _, err := h.Unlock(b.crypt, pass, slots...)
	if err != nil {
		return nil, reasoned(err)
	}
	return &volume{h, key}, nil
}

// What a keyslot may make a Pi spend before its passphrase is known to be right: the
// header lies on a card that anybody may have written. A Pi 4 does about 4 GiB times
// passes in the ten seconds that a person waits, and 10 million iterations in half a minute.
const (
	maxPasses     = 64
	maxWork       = 8 << 20 // KiB times passes
	maxIterations = 10_000_000
)

// spend is what this machine has for one keyslot.
func spend() luks2.Limits {
	l := luks2.DefaultLimits()
	l.Time, l.Work, l.Iterations = maxPasses, maxWork, maxIterations
	if free, err := boot.AvailableMemory(); err == nil {
		l.Memory = min(l.Memory, free/2>>10)
	}
	return l
}
