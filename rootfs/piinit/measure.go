package piinit

import (
	"context"
	"encoding/hex"
	"fmt"

	"portcullis/hardware"
	"portcullis/hardware/detect"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

func rootOf(v boot.Verity) ([32]byte, error) {
	var root [32]byte
	if n, err := hex.Decode(root[:], []byte(v.RootHash)); err != nil || n != len(root) {
		return root, boot.Failf(boot.ReasonCmdline, "roothash is not 32 bytes in hex")
	}
	return root, nil
}

// chipLimit is how long the chip may take for one command. It is shorter than what
// the watchdog allows a step: a chip that hangs shall lead to the recovery key's
// prompt and not to one restart after the other.
const chipLimit = stepLimit / 3

// findPosture asks whether there is a chip, who measured before us, and what the
// firmware says of itself.
func (b *Boot) findPosture(ctx context.Context) error {
	b.begin(StagePosture)
	policyKey, err := b.Info.Policy()
	if err != nil {
		return boot.Failf(ReasonImage, "%w", err)
	}
	if err := b.readPolicy(); err != nil {
		b.Log.Note("policy", "problem", err) // the chip will say no by itself; a recovery key still helps
	}
	config := tpm2.Config{PolicyKey: policyKey, Policy: b.policy, NVIndex: b.Info.NVIndex, Timeout: chipLimit}
	b.chip = config
	posture, detail := detect.Posture(b.Firmware)
	b.platform = tpmpolicy.PlatformSelf
	if b.platform, b.noChip = b.askPlatform(ctx, config); b.noChip == nil {
		config.Platform = b.platform
		b.chip = config
		b.tpm, b.noChip = b.Host.TPM(ctx, config)
	}
	b.askModule(ctx)
	switch {
	case b.there() == "":
		posture, detail = hardware.PostureNone, "no chip: "+b.noChip.Error()
	case b.platform == tpmpolicy.PlatformEFI:
		posture, detail = hardware.PostureFirmware, "UEFI firmware measured what it loaded"
	}
	b.hand.Posture, b.hand.PostureDetail, b.hand.Platform = string(posture), detail, string(b.platform)
	b.Log.Stage(b.stage, "posture", posture, "platform", b.platform, "detail", detail)
	return nil
}

// askPlatform tells who measured. Firmware did where UEFI started the kernel and
// the stub has extended the register that it shares with us; anything less is
// "self", whose policy can never open what was sealed under the other.
func (b *Boot) askPlatform(ctx context.Context, config tpm2.Config) (tpmpolicy.Platform, error) {
	tpm, err := b.Host.TPM(ctx, config)
	if err != nil {
		return tpmpolicy.PlatformSelf, err
	}
	defer tpm.Close()
	v, err := tpm.ReadPCR(ctx, card.PCRPhase)
	if err != nil {
		return tpmpolicy.PlatformSelf, err
	}
	if b.EFI && !tpmpolicy.Empty(v) {
		return tpmpolicy.PlatformEFI, nil
	}
	return tpmpolicy.PlatformSelf, nil
}

func (b *Boot) readPolicy() error {
	v, err := b.bootVolume()
	if err != nil {
		return err
	}
	text, err := v.ReadFile(card.PolicyFile, tpmpolicy.MaxFile)
	if err != nil {
		return boot.Failf(ReasonPolicyFile, "%s of slot %s: %w", card.PolicyFile, b.decision.Slot, err)
	}
	f, err := tpmpolicy.Parse(text)
	if err != nil {
		return boot.Failf(ReasonPolicyFile, "%w", err)
	}
	b.policy = f
	return nil
}

// measure extends what runs into the TPM's registers, and asks the chips who they are.
func (b *Boot) measure(ctx context.Context) error {
	if b.tpm != nil {
		b.begin(StageMeasure)
		if err := b.extend(ctx); err != nil {
			return err
		}
	}
	b.dropDigest()
	if b.there() == "" {
		return nil
	}
	b.begin(StageChip)
	b.nameChips(ctx)
	return nil
}

func (b *Boot) extend(ctx context.Context) error {
	events, err := b.events(ctx)
	if err != nil {
		return err
	}
	if b.platform == tpmpolicy.PlatformSelf {
		if err := b.freshRegisters(ctx, events); err != nil {
			b.dropTPM(err)
			return nil
		}
	}
	for _, e := range events {
		if err := b.tpm.Extend(ctx, e.PCR, e.Data); err != nil {
			b.dropTPM(err)
			return nil
		}
	}
	pairs := []any{"events", len(events)}
	if b.platform == tpmpolicy.PlatformSelf {
		pairs = append(pairs, "boot", hex.EncodeToString(events[0].Data))
	}
	b.Log.Stage(b.stage, pairs...)
	return nil
}

// freshRegisters refuses to measure on top of an earlier boot. A chip on the Pi's
// header is reset by the supply only, unless its reset line is wired: after a
// restart it still holds the cap of the boot before, and no policy can hold.
func (b *Boot) freshRegisters(ctx context.Context, events []tpmpolicy.Event) error {
	for _, e := range events {
		v, err := b.tpm.ReadPCR(ctx, e.PCR)
		if err != nil {
			return err
		}
		if !tpmpolicy.Empty(v) {
			return &hardware.Error{Reason: hardware.Reason(ReasonNotReset),
				Err: fmt.Errorf("register %d holds an earlier boot: the chip was not reset with the Pi; switch the power off and on", e.PCR)}
		}
	}
	return nil
}

// events are what is measured; on platform self the first is what was booted.
func (b *Boot) events(ctx context.Context) ([]tpmpolicy.Event, error) {
	if b.platform == tpmpolicy.PlatformEFI {
		return []tpmpolicy.Event{{PCR: card.PCRPhase, Data: []byte(card.PhaseEnter)}}, nil
	}
	own, err := card.Cmdline(b.Cmdline)
	if err != nil {
		return nil, boot.Failf(ReasonModel, "%w", err)
	}
	// What the bootloader says that it verified is worth more than what we read again.
	digest, said := detect.BootImage(b.Firmware)
	if !said {
		if b.digest == nil { // UEFI started us but did not measure
			b.startDigest(ctx)
		}
		if digest, err = b.digest.wait(); err != nil {
			return nil, err
		}
	}
	return tpmpolicy.SelfEvents(digest, own), nil
}
