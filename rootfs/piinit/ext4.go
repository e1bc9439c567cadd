package piinit

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// Fields of the ext4 superblock (Documentation/filesystems/ext4/super.rst), which
// begins at byte 1024 and has 1024 bytes.
const (
	superAt, superSize  = 1024, 1024
	superMagic          = 0x38 // u16
	superState          = 0x3A // u16
	superMounts         = 0x34 // u16, since the last check
	superMaxMounts      = 0x36 // i16, -1: no limit
	superIncompat       = 0x60 // u32
	superReadOnlyCompat = 0x64 // u32
	superChecksum       = 0x3FC

	ext4Magic    = 0xEF53
	stateClean   = 1 // unmounted in order, no errors
	needsReplay  = 0x4
	metadataCsum = 0x400
)

// cleanExt4 tells whether a file system was unmounted in order and knows of no
// error, which is what e2fsck -p looks at before it ends without checking anything. To
// find that out here saves starting a program from a root that nobody has read yet.
func cleanExt4(r io.ReaderAt) bool {
	b := make([]byte, superSize)
	if _, err := r.ReadAt(b, superAt); err != nil {
		return false
	}
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	most := int16(u16(superMaxMounts))
	switch {
	case u16(superMagic) != ext4Magic, u16(superState) != stateClean, u32(superIncompat)&needsReplay != 0:
		return false
	case u32(superReadOnlyCompat)&metadataCsum == 0: // mkfs.ext4 of this system always sets it
		return false
	case most > 0 && u16(superMounts) >= uint16(most):
		return false
	}
	// The kernel's crc32c starts with all ones and is not inverted at the end.
	sum := ^crc32.Checksum(b[:superChecksum], crc32.MakeTable(crc32.Castagnoli))
	return u32(superChecksum) == sum
}
