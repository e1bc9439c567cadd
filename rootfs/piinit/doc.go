// Package piinit is the first program of the Pi: from the kernel to the real
// system on an encrypted card that only this Pi's chip opens. cmd/pi-init calls Run
// as PID 1 of the initramfs.
//
// What it does in every boot:
//
//	init          API filesystems, consoles, memory locked, no core dumps
//	watchdog      armed with the first driver; fed only while a step is within its time
//	modules       all drivers, in the order of the image
//	card          found by its partitions' labels; which release is this, is it on trial
//	posture       what this Pi's boot protects against
//	measure       boot partition and command line into the chip's registers
//	chip          who keeps the key
//	header        LUKS2 header checked, repaired from its second copy
//	unlock        by the chip, or by a recovery key that a person types
//	slot, verity  the system whose root hash stands on our own command line
//	cap           registers extended, so that nothing after us can unseal again
//	data          checked and mounted
//	settings      what the operator put on the card
//	switch-root   systemd
//
// The card is found and the boot partition read for its digest while drivers are still
// being loaded; nothing is written before all of them are there. Modules that are needed
// only once the system is mounted are loaded out of it (stage data).
//
// A card without a finished volume is enrolled first (stages enrol-…): a key is
// born from the chip's and the kernel's random bytes, the system is copied from the
// seed partition through the encryption and read back through dm-verity, the key is
// sealed, a recovery key is shown and given to the operator's escrow, and one write
// of the LUKS2 header makes all of it valid. Until that write, every boot starts
// over and nothing is lost; after it, nothing is ever wiped by itself.
//
// It never gives a shell. When it fails it says why, asks for the recovery key where
// one helps, counts down and restarts the machine.
//
// The logic (Boot) works on interfaces (Host, Card, Disk, Space, TPM, Console), so
// that tests cut the power after every single write. The kernel's side is in linux*.go.
package piinit

import "portcullis/rootfs/boot"

// Stages, as they stand on the console.
const (
	StageInit       = "init"
	StageModules    = "modules"
	StageWatchdog   = "watchdog"
	StageCard       = "card"
	StagePosture    = "posture"
	StageMeasure    = "measure"
	StageChip       = "chip"
	StageHeader     = "header"
	StageUnlock     = "unlock"
	StageSlot       = "slot"
	StageVerity     = "verity"
	StageCap        = "cap"
	StageData       = "data"
	StageSettings   = "settings"
	StageSwitchRoot = "switch-root"

	StageEnrolOperator = "enrol-operator"
	StageEnrolGrow     = "enrol-grow"
	StageEnrolFormat   = "enrol-format"
	StageEnrolCopy     = "enrol-copy"
	StageEnrolVerify   = "enrol-verify"
	StageEnrolSeal     = "enrol-seal"
	StageEnrolData     = "enrol-data"
	StageEnrolRecovery = "enrol-recovery"
	StageEnrolCommit   = "enrol-commit"
)

// Reasons of this package, beside those of boot, card, luks2, hardware and tpm2.
const (
	ReasonImage      boot.Reason = "pi-image"       // the initramfs lacks its own record
	ReasonModel      boot.Reason = "pi-cmdline"     // the command line is not the image's
	ReasonBootFiles  boot.Reason = "boot-files"     // the boot partition cannot be read
	ReasonNoChip     boot.Reason = "root-absent"    // no chip: nothing is enrolled without one
	ReasonDowngrade  boot.Reason = "root-downgrade" // the volume's key is kept by less than this image demands
	ReasonNotReset   boot.Reason = "chip-not-reset" // the chip still holds the registers of the boot before: power off and on
	ReasonPolicyFile boot.Reason = "policy-missing" // the boot partition has no policy that can be read
	ReasonVolume     boot.Reason = "volume-foreign" // the volume was not made here and has no token that we know
	ReasonLost       boot.Reason = "volume-lost"    // the card was enrolled, and both headers are gone
	ReasonUnlock     boot.Reason = "unlock-failed"  // neither chip nor recovery key opened the volume
	ReasonOperator   boot.Reason = "enrol-operator" // no operator key on the card and nobody at the console
	ReasonCardSmall  boot.Reason = "card-small"     // no room for two systems and data
	ReasonCopy       boot.Reason = "enrol-copy"     // the seed could not be copied
	ReasonSeedRoot   boot.Reason = "enrol-verify"   // what was copied is not the system of this release
	ReasonSeal       boot.Reason = "enrol-seal"     // the chip does not give back what it was given
	ReasonData       boot.Reason = "data-volume"    // the data volume cannot be made, checked or mounted
	ReasonHost       boot.Reason = "host"           // a device or mount that this program makes
	ReasonTrial      boot.Reason = "trial-dropped"  // a new release is taken back
	ReasonSettings   boot.Reason = "settings"       // the operator's settings cannot be put in place
)
