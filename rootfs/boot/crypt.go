package boot

import (
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Crypt is the part of a block device that holds encrypted data.
type Crypt struct {
	UUID       string // of the LUKS2 volume; "": there is none, its key is kept nowhere
	Offset     int64  // of the data, bytes
	Size       int64  // of the data, bytes
	SectorSize int    // bytes
	IVTweak    uint64 // number of the first sector
}

// OpenCrypt makes the device name over dev, AES-XTS with plain64 sector numbers, and
// returns its path (/dev/dm-N). The key (64 bytes for AES-256) is the caller's to clear.
func OpenCrypt(name, dev string, c Crypt, key []byte) (string, error) {
	if c.SectorSize < sectorSize || c.Size <= 0 || c.Offset < 0 || (c.Offset|c.Size)%int64(c.SectorSize) != 0 {
		return "", Failf(ReasonMapper, "%s: %+v is not made of sectors", name, c)
	}
	major, minor, err := deviceNumber(dev)
	if err != nil {
		return "", Failf(ReasonMapper, "%w", err)
	}
	table := cryptTable(major, minor, c, key)
	defer clear(table)
	// The form of the UUID is cryptsetup's: other programs know the device by it.
	uuid := "CRYPT-LUKS2-" + strings.ReplaceAll(c.UUID, "-", "") + "-" + name
	if c.UUID == "" {
		uuid = "CRYPT-PLAIN-" + name
	}
	path, err := makeMapped(name, uuid, unix.DM_SECURE_DATA_FLAG, uint64(c.Size/sectorSize), "crypt", table)
	if err != nil {
		return "", Failf(ReasonMapper, "%w", err)
	}
	return path, nil
}

// maxTable is room for every table of ours, in bytes.
const maxTable = 1024

// cryptTable is the parameter string of the crypt target
// (Documentation/admin-guide/device-mapper/dm-crypt.rst).
func cryptTable(major, minor uint32, c Crypt, key []byte) []byte {
	b := append(make([]byte, 0, maxTable), "aes-xts-plain64 "...)
	b = hex.AppendEncode(b, key)
	return fmt.Appendf(b, " %d %d:%d %d 1 sector_size:%d", c.IVTweak, major, minor, c.Offset/sectorSize, c.SectorSize)
}
