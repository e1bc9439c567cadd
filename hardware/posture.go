package hardware

import "fmt"

// Posture says what the Pi's boot protects against; never more than what was detected.
type Posture string

// Postures, the weaker first.
const (
	// PostureNone: no chip holds the key.
	PostureNone Posture = "none"
	// PostureCardTheft: a stolen or cloned card stays closed. Who can rewrite the
	// boot partition of this Pi, or hold Pi and card together, can open it.
	PostureCardTheft Posture = "card-theft"
	// PostureSignedBoot: the bootloader enforces the signature of boot.img, but its
	// own configuration could be replaced.
	PostureSignedBoot Posture = "signed-boot"
	// PostureSignedBootOTP: the customer key's hash is in OTP; the initramfs is the
	// root of measurement.
	PostureSignedBootOTP Posture = "signed-boot+otp"
	// PostureFirmware: UEFI firmware measured what was loaded (QEMU with AAVMF).
	PostureFirmware Posture = "firmware-measured"
)

// ParsePosture accepts exactly the names above.
func ParsePosture(s string) (Posture, error) {
	switch p := Posture(s); p {
	case PostureNone, PostureCardTheft, PostureSignedBoot, PostureSignedBootOTP, PostureFirmware:
		return p, nil
	}
	return "", fmt.Errorf("posture %q is not known", s)
}
