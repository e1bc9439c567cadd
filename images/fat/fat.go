// Package fat makes and reads FAT16 and FAT32 file systems (Microsoft, "FAT32
// File System Specification" 1.03) without mounting them. It is pure: the same
// inputs give the same bytes.
//
// Build lays every file out contiguous, which lets the updater, flash and pi-init
// rewrite a file's sectors in place without touching an allocation table: see
// FS.Extent. It replaces mkfs.fat and mcopy for the Pi's card.
package fat

import (
	"fmt"
	"io"
	"time"
)

// SectorSize is the sector size of what Build makes, in bytes.
const SectorSize = 512

// Limits.
const (
	MinSize     = 4 << 20   // bytes: the least that Build makes a FAT16 of
	MaxSize     = 32 << 30  // bytes
	fat32From   = 512 << 20 // bytes: FAT32 from here on
	maxFiles    = 4096      // files that Build takes
	maxSlots    = 1 << 20   // directory slots of 32 bytes that one call looks at
	maxDepth    = 16        // directories below each other
	maxFileSize = 1<<32 - 1 // bytes: the format's own
	maxDirSize  = 65536 * slotSize
)

// Reasons why a file system or a path is refused.
const (
	ReasonMalformed  = "fat-malformed"  // not a FAT16 or FAT32 whose fields agree
	ReasonDamaged    = "fat-damaged"    // a chain of clusters leaves the volume, ends early or loops
	ReasonNotFound   = "fat-not-found"  // no such file
	ReasonFragmented = "fat-fragmented" // the file is not contiguous, so it has no extent
	ReasonSize       = "fat-size"       // a file or the content is larger than allowed
	ReasonName       = "fat-name"       // a name that the format cannot hold, or that is there twice
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

// Options describe a new file system.
type Options struct {
	Size  int64     // bytes, MinSize to MaxSize, a multiple of SectorSize; FAT32 from 512 MiB on
	Label string    // at most 11 characters, upper case; may be empty
	ID    uint32    // volume serial number
	Time  time.Time // of every file, taken as UTC, 1980 to 2107; the zero value is 1980-01-01
}

// File is a file to be built. Its directories are made as needed.
type File struct {
	Path    string // separated by '/', without one in front
	Size    int64  // bytes, below 4 GiB
	Content io.ReaderAt
}

// Entry is a file or directory that List found.
type Entry struct {
	Path    string // separated by '/', as it is spelt on the volume
	Size    int64  // bytes; 0 for a directory
	Dir     bool
	ModTime time.Time
}
