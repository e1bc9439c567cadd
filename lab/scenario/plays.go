package scenario

import (
	"portcullis/lab"
	"portcullis/lab/qemu"
)

// PiPlays are the main scenarios with a Pi that boots the built card. Nothing of
// the scenes is different: events, questions and commands reach the Pi another way.
func PiPlays() []Play {
	short := func(s *lab.Settings) { s.ClaimWindow = playedWindow }
	return []Play{
		{Name: "pi-claims", Pi: lab.PiImage, Played: true, Tune: short, Scenes: []Scene{secondClaim()}},
		{Name: "pi-http", Pi: lab.PiImage, Firmware: qemu.UEFIHTTP, Scenes: []Scene{
			trusted(qemu.UEFIHTTP), grantScene(), forbiddenScene(), attestdRestart(), denyOutlivesGateway(), powerCycle(), changedBinaryScene(),
		}},
	}
}

// Plays returns every play in the order in which they are best run: what needs
// no machine first, then the boots.
func Plays() []Play {
	short := func(s *lab.Settings) { s.ClaimWindow = playedWindow }
	same := func(*lab.Built, string) error { return nil }
	return []Play{
		{Name: "files", Played: true, Image: same, Scenes: []Scene{changedArtefact(), badManifest()}},
		{Name: "claims", Played: true, Tune: short, Scenes: []Scene{secondClaim(), copiedKey(), lateClaim(), replayedEvidence()}},
		{Name: "http", Firmware: qemu.UEFIHTTP, Scenes: append([]Scene{
			trusted(qemu.UEFIHTTP), askedScene(), grantScene(), forbiddenScene(), attestdRestart(), denyOutlivesGateway(), powerCycle(),
		}, intruderScenes()...)},
		{Name: "hardware", Firmware: qemu.UEFIHTTP, Long: true, Scenes: []Scene{changedHardware()}},
		{Name: "reboot", Firmware: qemu.UEFIHTTP, Long: true, Tune: rebootPolicy, Scenes: []Scene{rebootLadder()}},
		{Name: "pxe", Firmware: qemu.UEFIPXE, TPM: true, Scenes: []Scene{trustedAt(qemu.UEFIPXE, "T1"), alteredBoot()}},
		{Name: "ipxe", Firmware: qemu.IPXE, Scenes: []Scene{trusted(qemu.IPXE)}},
		{Name: "bios", Firmware: qemu.BIOS, Scenes: []Scene{trusted(qemu.BIOS)}},
		{Name: "crash", Firmware: qemu.UEFIHTTP, Scenes: []Scene{killedInBoot("attestd"), killedInBoot("pxed"), killedInBoot("gatewayd")}},
	}
}
