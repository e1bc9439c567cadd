// Package gpt reads and writes GUID partition tables (UEFI 2.10 section 5) on
// anything with offsets: image files, block devices, buffers. It is pure: GUIDs
// come in from the caller, the same table always gives the same bytes.
//
// It replaces sfdisk and sgdisk for the Pi's card. Writing keeps one readable
// table at every moment, so that the power may fail in the middle of growing it.
package gpt

import "fmt"

// SectorSize is the only logical sector size, in bytes: that of cards.
const SectorSize = 512

// Limits of what is read and written.
const (
	// MaxPartitions is the number of entries that Write lays out.
	MaxPartitions = 128
	// maxEntries and maxArray cap what Read believes of a header.
	maxEntries = 1024
	maxArray   = 1 << 20 // bytes

	entrySize    = 128
	arraySize    = MaxPartitions * entrySize
	arraySectors = arraySize / SectorSize
	headerSize   = 92

	// firstUsable is behind protective MBR, header and entries.
	firstUsable = 2 + arraySectors
	// MinSectors is the smallest device that a table fits on: both copies and one aligned MiB.
	MinSectors = 2*AlignSectors + arraySectors + 1
	// AlignSectors is 1 MiB: Grow ends the last partition on a multiple of it.
	AlignSectors = 1 << 20 / SectorSize
	// maxSectors keeps byte offsets inside an int64.
	maxSectors = 1 << 54
)

// Reasons why a table is refused.
const (
	ReasonMissing = "gpt-missing" // neither copy begins like a table
	ReasonDamaged = "gpt-damaged" // no copy has valid checksums and fields
	ReasonInvalid = "gpt-invalid" // partitions overlap, lie outside the device or repeat
	ReasonSize    = "gpt-size"    // the device is too small or too large for the table
	ReasonName    = "gpt-name"    // no partition, or more than one, has the name asked for
)

// Error is a refusal with its typed reason.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
