// Package flash writes a signed disk image to a card and proves that the card
// holds it. It is called by the portcullis program and may open the one device
// that it was given, nothing else.
//
// The order of one run, and why:
//
//  1. The first MiB of the device becomes zero: from here on the card is nothing
//     that would boot.
//  2. The image is decompressed once, in order. Each range is compared with its
//     digest of the signed map before it is written, all but the first. Where the
//     image is zero the device is read, and written only where it is not zero: a
//     card that was used before must not keep an old LUKS header or old settings.
//  3. The last MiB of the device gets random bytes.
//  4. Everything is read back from the device, past the page cache, and compared.
//     This comes behind all writing, because a card that has less memory than it
//     says takes every write and only then is found to have overwritten itself.
//  5. The last MiB is read back and becomes zero: an older system's backup
//     partition table would be there.
//  6. The range with the partition table is written and read back, last of all.
//  7. The operator's settings go into their place in the PCCONF partition.
//
// What lies behind the image, up to the last MiB, is left alone: the first boot
// encrypts it.
package flash

import (
	"errors"
	"fmt"

	"portcullis/images/blockmap"
	"portcullis/images/manifest"
)

// Reasons why a device is refused or a run fails. An image or a map that is
// refused has a reason of images/blockmap or images/manifest.
const (
	ReasonNotDisk      = "flash-not-a-disk"     // neither a disk nor a regular file
	ReasonPartition    = "flash-partition"      // a partition; a whole disk is needed
	ReasonSystem       = "flash-system"         // holds the running system
	ReasonMounted      = "flash-mounted"        // something on it is mounted
	ReasonSwap         = "flash-swap"           // something on it is used as swap
	ReasonHeld         = "flash-held"           // device-mapper, md or LVM uses it
	ReasonBusy         = "flash-busy"           // another program has it open for itself
	ReasonReadOnly     = "flash-read-only"      // the kernel or a switch on the card forbids writing
	ReasonSector       = "flash-sector"         // its sectors are not of 512 bytes
	ReasonTooSmall     = "flash-too-small"      // the first boot would not find room
	ReasonTooLarge     = "flash-too-large"      // larger than 2 TB, no card; can be forced
	ReasonNotRemovable = "flash-not-removable"  // built in; can be forced
	ReasonNotConfirmed = "flash-not-confirmed"  // the operator did not type the device's name
	ReasonIO           = "flash-io"             // reading from or writing to the device fails
	ReasonVerify       = "flash-verify"         // the device gives back something else than was written
	ReasonLies         = "flash-false-capacity" // the end of the device does not keep what is written there
	ReasonSettings     = "flash-settings"       // the image has no place for the operator's settings
)

// Error is a refusal or a failure with its typed reason.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Reason is the typed reason of an error of this package, of the map or of its
// signature; empty where it has none.
func Reason(err error) string {
	var e *Error
	var b *blockmap.Error
	var m *manifest.Error
	switch {
	case errors.As(err, &e):
		return e.Reason
	case errors.As(err, &b):
		return b.Reason
	case errors.As(err, &m):
		return m.Reason
	}
	return ""
}
