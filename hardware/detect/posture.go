package detect

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strings"

	"portcullis/hardware"
)

// DeviceTree is where Linux shows the device tree the firmware handed over.
const DeviceTree = "/proc/device-tree"

// Bits of chosen/bootloader/signed, as the Raspberry Pi documentation lists them
// under "chosen/bootloader". Bit 1 is reserved.
const (
	signedConfig = 1 << 0 // SIGNED_BOOT=1 stands in the EEPROM's configuration
	signedDevkey = 1 << 2 // the ROM's development key is revoked
	signedOTP    = 1 << 3 // the digest of the customer's key is in OTP
)

// maxProperty caps a device tree property, in bytes.
const maxProperty = 4 << 10

// Posture reads from a device tree (rooted at DeviceTree) what the boot of this Pi
// protects against, and a sentence that says why. It never answers more than the
// firmware states: a property that is missing, short or unknown gives the weaker
// posture. It cannot see a chip: who has none reports PostureNone, and who booted
// through measuring firmware PostureFirmware.
func Posture(dt fs.FS) (hardware.Posture, string) {
	bits, err := word(dt, "chosen/bootloader/signed")
	if err != nil {
		return hardware.PostureCardTheft, "the bootloader does not say that it checks signatures"
	}
	if bits&signedConfig == 0 {
		return hardware.PostureCardTheft, fmt.Sprintf("signed boot is not configured in the EEPROM (signed=%#x)", bits)
	}
	if bits&signedOTP == 0 {
		return hardware.PostureSignedBoot, fmt.Sprintf("boot.img is checked, but no key is in OTP: the EEPROM can be replaced (signed=%#x)", bits)
	}
	switch m := Model(dt); {
	case strings.HasPrefix(m.Family, "pi4") && bits&signedDevkey == 0:
		// Without it the ROM still starts an old bootloader that checks nothing.
		return hardware.PostureSignedBoot, fmt.Sprintf("the key is in OTP, but the development key is not revoked: an old bootloader still starts (signed=%#x)", bits)
	case m.Family == "":
		return hardware.PostureSignedBoot, fmt.Sprintf("the key is in OTP, but %q is no model whose boot ROM is known to enforce it (signed=%#x)", m.Name, bits)
	}
	return hardware.PostureSignedBootOTP, fmt.Sprintf("the boot ROM enforces the key in OTP (signed=%#x)", bits)
}

// BootImage returns the SHA-256 of the boot.img that the bootloader verified, which
// a Pi 5's EEPROM of 2025-01-22 and later reports when signed boot is on.
func BootImage(dt fs.FS) ([32]byte, bool) {
	b, err := property(dt, "chosen/bootloader/boot_img_sha256")
	if err != nil {
		return [32]byte{}, false
	}
	return parseDigest(b)
}

// parseDigest reads a SHA-256 as 32 raw bytes or as 64 hexadecimal digits with or
// without a NUL behind them. All zeros is no digest.
func parseDigest(b []byte) (digest [32]byte, ok bool) {
	switch {
	case len(b) == 32:
		copy(digest[:], b)
	case len(b) == 64, len(b) == 65 && b[64] == 0:
		if _, err := hex.Decode(digest[:], b[:64]); err != nil {
			return [32]byte{}, false
		}
	default:
		return digest, false
	}
	return digest, digest != [32]byte{}
}

// Partition returns the number of the partition that the firmware booted from.
// Where a boot.img was loaded it is the partition that holds the boot.img.
func Partition(dt fs.FS) (int, bool) {
	n, err := word(dt, "chosen/bootloader/partition")
	if err != nil || n < 1 || n > 128 {
		return 0, false
	}
	return int(n), true
}

// Board is the machine as its device tree names it.
type Board struct {
	Name string `json:"name"` // for instance "Raspberry Pi 4 Model B Rev 1.5"
	// Family is "pi4" (Pi 4, 400, CM4), "pi5" (Pi 5, 500, CM5) or empty.
	Family string `json:"family,omitempty"`
	// CM is true for a compute module.
	CM     bool   `json:"compute_module,omitempty"`
	Serial string `json:"serial,omitempty"`
}

// families are the compatible strings of the systems on chip.
var families = map[string]string{"brcm,bcm2711": "pi4", "brcm,bcm2712": "pi5"}

// Model reads the board. Nothing in it is proven: whoever makes the device tree makes it.
func Model(dt fs.FS) Board {
	var b Board
	b.Name = text(dt, "model")
	b.Serial = text(dt, "serial-number")
	b.CM = strings.Contains(b.Name, "Compute Module")
	raw, err := property(dt, "compatible")
	if err != nil {
		return b
	}
	for _, c := range strings.Split(string(raw), "\x00") {
		if f, ok := families[c]; ok {
			b.Family = f
		}
	}
	return b
}

func word(dt fs.FS, name string) (uint32, error) {
	b, err := property(dt, name)
	if err != nil {
		return 0, err
	}
	if len(b) != 4 {
		return 0, fmt.Errorf("%s has %d bytes instead of 4", name, len(b))
	}
	return binary.BigEndian.Uint32(b), nil
}

// text returns a string property in printable ASCII, at most 128 bytes of it.
func text(dt fs.FS, name string) string {
	b, err := property(dt, name)
	if err != nil {
		return ""
	}
	return printable(string(b))
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	if len(s) > 128 {
		s = s[:128]
	}
	return strings.TrimSpace(s)
}

func property(dt fs.FS, name string) ([]byte, error) {
	return readCapped(dt, name, maxProperty)
}
