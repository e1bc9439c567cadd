package gpt

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID is 16 bytes in the order of the disk: the first three groups little-endian
// (UEFI 2.10 appendix A). The zero value is no GUID.
type GUID [16]byte

// Partition types (UEFI 2.10 table 5.7; the Discoverable Partitions Specification).
var (
	TypeESP       = MustGUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B") // EFI system partition
	TypeBasicData = MustGUID("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7") // FAT, as the Pi's bootloader looks for
	TypeLinux     = MustGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4") // any Linux data
	TypeLUKS      = MustGUID("CA7D7CCB-63ED-4C53-861C-1742536059CC") // LUKS container
)

// ParseGUID reads the usual text form, in either case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	parts := strings.Split(s, "-")
	if len(parts) != 5 || len(s) != 36 || len(parts[0]) != 8 || len(parts[1]) != 4 || len(parts[2]) != 4 || len(parts[3]) != 4 {
		return g, fmt.Errorf("%.40q is not a GUID", s)
	}
	b, err := hex.DecodeString(strings.Join(parts, ""))
	if err != nil {
		return g, fmt.Errorf("%.40q is not a GUID", s)
	}
	return swap(GUID(b)), nil
}

// MustGUID is ParseGUID for constants; it panics on a wrong one.
func MustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// FromBytes makes a version 4 GUID (RFC 9562 section 5.4) of 16 bytes, which may
// be random or a digest of the inputs of a build.
func FromBytes(b [16]byte) GUID {
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return swap(b)
}

// String returns the usual text form in upper case.
func (g GUID) String() string {
	b := swap(g)
	return strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

func swap(b GUID) GUID {
	g := b
	binary.LittleEndian.PutUint32(g[0:], binary.BigEndian.Uint32(b[0:]))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(b[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(b[6:]))
	return g
}
