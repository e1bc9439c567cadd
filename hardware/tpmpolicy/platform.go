// Package tpmpolicy computes and signs, without a TPM, the policies under which a
// TPM releases the card's key: the image builder signs them, pi-init shows them to
// the chip. It is pure. The digests follow TPM 2.0 Library Part 3: 23.7
// (PolicyPCR), 23.9 (PolicyNV), 23.16 (PolicyAuthorize).
package tpmpolicy

import (
	"crypto/sha256"
	"fmt"

	"portcullis/images/card"
)

// Platform says who measures.
type Platform string

// Platforms.
const (
	PlatformSelf Platform = "self" // pi-init does: no firmware measures
	PlatformEFI  Platform = "efi"  // UEFI firmware and the UKI's stub did before us
)

// ParsePlatform accepts exactly the names above.
func ParsePlatform(s string) (Platform, error) {
	switch p := Platform(s); p {
	case PlatformSelf, PlatformEFI:
		return p, nil
	}
	return "", fmt.Errorf("platform %q is not known", s)
}

// Ref is the policyRef under which policies of a platform are signed. It differs
// per platform: registers that pi-init filled itself must never open what was
// sealed on a machine whose firmware measures, because who replaces the initramfs
// can fill them alike.
func Ref(p Platform) []byte {
	h := sha256.Sum256([]byte("portcullis/pi/tpm-policy/v1/" + string(p)))
	return h[:]
}

// Event is one measurement: the SHA-256 of Data goes into the register PCR (of
// every other active bank: that bank's hash of Data).
type Event struct {
	PCR  int
	Data []byte
}

// SelfEvents are the measurements of platform "self", in order: what pi-init
// extends before it unseals and what the image builder predicts. boot is
// card.MeasuredDigest (on a Pi 5 with signed boot: boot_img_sha256 of the device tree),
// cmdline is card.Cmdline's result.
func SelfEvents(boot [32]byte, cmdline string) []Event {
	line := sha256.Sum256([]byte(cmdline))
	return []Event{
		{card.PCRBoot, boot[:]},
		{card.PCRCmdline, line[:]},
		{card.PCRPhase, []byte(card.PhaseEnter)},
	}
}

// Extend returns the register after data was measured into it.
func Extend(value [32]byte, data []byte) [32]byte {
	d := sha256.Sum256(data)
	return sha256.Sum256(append(value[:], d[:]...))
}

// Predict returns the registers after the events; those that start has not are
// zero before.
func Predict(start map[int][32]byte, events ...Event) map[int][32]byte {
	pcrs := make(map[int][32]byte, len(start)+len(events))
	for i, v := range start {
		pcrs[i] = v
	}
	for _, e := range events {
		pcrs[e.PCR] = Extend(pcrs[e.PCR], e.Data)
	}
	return pcrs
}

// Empty reports whether a register says nothing: all zero (nobody measured) or all
// ones (reset by another locality, or a bank that is off).
func Empty(v [32]byte) bool {
	var zero, ones [32]byte
	for i := range ones {
		ones[i] = 0xff
	}
	return v == zero || v == ones
}
