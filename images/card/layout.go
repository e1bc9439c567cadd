// Package card describes the Pi's SD card: partitions, the files with a fixed
// place on them, and what pi-init measures. It is pure. The image builder, flash,
// pi-init, the updater and the lab's model of the firmware share it.
package card

// SectorSize is the logical sector of cards, in bytes.
const SectorSize = 512

// Partition numbers (GPT entry and what autoboot.txt counts) and labels, in the order of the card.
const (
	PartConf  = 1
	PartBootA = 2
	PartBootB = 3
	PartSeed  = 4
	PartCrypt = 5

	LabelConf  = "PCCONF"
	LabelBootA = "PCBOOT_A"
	LabelBootB = "PCBOOT_B"
	LabelSeed  = "PCSEED"
	LabelCrypt = "PCCRYPT"
)

// Sizes in bytes. The encrypted partition takes what is left of the card.
const (
	Align    = 1 << 20
	ConfSize = 32 << 20
	BootSize = 64 << 20

	// CryptHeader is the LUKS2 header with its keyslots, before the payload.
	CryptHeader = 16 << 20
	// SystemSize is each of the two system slots inside the encrypted payload:
	// system_a from 0, system_b behind it, data from 2 × SystemSize to the end.
	SystemSize = 512 << 20
	// MinData is the least data volume that first boot accepts.
	MinData = 64 << 20
)

// Files of the PCCONF partition. All but AutobootFile's siblings of the firmware
// are allocated once, contiguous, and rewritten in place sector by sector: no
// file allocation table changes after flashing.
const (
	AutobootFile = "autoboot.txt" // 512 bytes, padded with line feeds
	StateFile    = "STATE.BIN"    // 65,536 bytes: two copies of the slot state, 32,768 bytes apart
	SeedFile     = "SEED.YML"     // 65,536 bytes: the operator's settings, padded with line feeds
	EscrowFile   = "ESCROW.AGE"   // 8,192 bytes: the recovery key for the operator, padded with line feeds
	EnrolFile    = "ENROL.JSN"    // 16,384 bytes: public enrolment record, padded with line feeds
	ZymbitFile   = "ZYMBIT.BIN"   // 524,288 bytes: two copies of a Zymbit module's state, 262,144 bytes apart; cards of older images have none

	AutobootSize = 512
	StateSize    = 65536
	StateCopy    = 32768 // offset of the second copy
	SeedSize     = 65536
	EscrowSize   = 8192
	EnrolSize    = 16384
	ZymbitSize   = 2 * ZymbitCopy
	ZymbitCopy   = 262144
)

// Files of a boot partition.
const (
	KernelFile    = "kernel8.img"   // gzip'd arm64 Image
	InitramfsFile = "initramfs.img" // xz cpio
	CmdlineFile   = "cmdline.txt"   // one line
	ConfigFile    = "config.txt"    // Pi models
	BootImgFile   = "boot.img"      // release profile of Pi models
	BootSigFile   = "boot.sig"
	PolicyFile    = "policy.json"                 // signed TPM policies; outside boot.img, which they bless
	UKIFile       = uefiDir + "BOOT/BOOTAA64.EFI" // model qemu

	uefiDir = "EFI/" // UEFI's own
)

// Device-mapper names inside the running Pi.
const (
	MapperCrypt   = "portcullis-crypt"
	MapperSystemA = "portcullis-system_a"
	MapperSystemB = "portcullis-system_b"
	MapperData    = "portcullis-data"
	MapperRoot    = "portcullis-root" // dm-verity over the system slot in use
)

// Slot is "a" or "b": a boot partition with its system slot.
type Slot string

// Slots.
const (
	SlotA Slot = "a"
	SlotB Slot = "b"
)

// Other returns the other slot.
func (s Slot) Other() Slot {
	if s == SlotA {
		return SlotB
	}
	return SlotA
}

// BootPartition is the number of the slot's boot partition.
func (s Slot) BootPartition() int {
	if s == SlotA {
		return PartBootA
	}
	return PartBootB
}
