package piinit

import (
	"context"
	"crypto"
	"io"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
	"portcullis/images/gpt"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// Disk is a block device, or a stretch of one.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns when everything written is on the medium.
	Sync() error
	Size() int64 // bytes
}

// Card is the SD card.
type Card interface {
	Size() int64 // bytes, all of it
	Table() (*gpt.Table, gpt.Health, error)
	// WriteTable writes a changed table, and the kernel follows.
	WriteTable(context.Context, *gpt.Table) error
	Partition(number int) (Disk, error)
}

// TPM is the chip, see package tpm2.
type TPM interface {
	hardware.Root
	hardware.Capper
	ReadPCR(ctx context.Context, pcr int) ([32]byte, error)
	Extend(ctx context.Context, pcr int, data []byte) error
	MeasureVolumeKey(ctx context.Context, name, uuid string, mac func(crypto.Hash, []byte) ([]byte, error)) error
	Counter(ctx context.Context) (uint64, error)
	RaiseCounter(ctx context.Context, to uint64) error
	Past(ctx context.Context) (tpm2.Past, error)
	KeepAttestationKey(ctx context.Context) error
	SetupLockout(ctx context.Context, l tpm2.Lockout) error
}

// Space is the inside of the volume.
type Space interface {
	System(card.Slot) Disk
	Data() Disk
	// OpenVerity puts dm-verity over a system slot. Reading a block that is not the
	// one that was signed fails.
	OpenVerity(card.Slot, boot.Verity) (io.ReaderAt, error)
	// MountSystem mounts the verified system.
	MountSystem() error
	// The data volume. Format and Check run programs of the verified system.
	Format(ctx context.Context, uuid string) error
	Check(ctx context.Context) (repaired bool, err error)
	MountData() error
}

// Host is what needs a kernel.
type Host interface {
	// Card waits for the card. It may come while drivers are still being loaded:
	// nothing is written before Settled.
	Card(context.Context) (Card, error)
	// Settled waits until all drivers are loaded, and fails where more than this one
	// card is there then.
	Settled(context.Context) error
	// TPM opens the chip; hardware.ReasonAbsent says that there is none.
	TPM(context.Context, tpm2.Config) (TPM, error)
	// Zymbit opens the Zymbit module; hardware.ReasonAbsent says that this image cannot
	// speak to one. Nothing is asked of the module yet. state is what the vendor's
	// tools find in their directory; nil: nothing.
	Zymbit(ctx context.Context, state *card.ZymbitState) (hardware.Root, error)
	// SystemdToken gets the passphrase for a token of systemd-cryptenroll.
	SystemdToken(ctx context.Context, token []byte) ([]byte, error)
	// Map makes the devices inside of the card's volume. It takes what it needs to know
	// from the header that was checked and from nowhere else.
	Map(h *luks2.Header, key []byte) (Space, error)
}

// Console reaches the people at the machine.
type Console interface {
	io.Writer
	// Ask shows a prompt with a %d for the seconds left, and returns a line, or
	// boot.ErrNoAnswer.
	Ask(ctx context.Context, prompt string, limit time.Duration, secret bool) ([]byte, error)
}
