// Package otp prepares the files with which an operator switches a Pi to signed boot and,
// in a second and irreversible step, burns the hash of the boot key into its one-time
// programmable memory. It is a pure function from a public key to files. It burns
// nothing: that is done by Raspberry Pi's own rpiboot over USB, by hand, with the Pi
// in recovery mode. "portcullis root prepare-otp" calls it after a typed confirmation.
package otp

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"

	"portcullis/images/card"
)

// Bits is the only size of key that the boot ROMs of the Pi 4 and the Pi 5 verify with.
const Bits = 2048

// maxPEM caps a key file, in bytes.
const maxPEM = 16 << 10

// ParseKey reads the public key of "image keygen": PEM, PKIX, RSA of 2048 bits with the
// exponent 65537.
func ParseKey(b []byte) (*rsa.PublicKey, error) {
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%d bytes are more than %d", len(b), maxPEM)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("no PEM block")
	}
	if block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("a PEM block of type %q is not a public key; the private one has no place here", block.Type)
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	r, ok := k.(*rsa.PublicKey)
	if !ok || r.N.BitLen() != Bits || r.E != 65537 {
		return nil, fmt.Errorf("the boot ROM takes RSA of %d bits with exponent 65537 only", Bits)
	}
	return r, nil
}

// Encode is the key as bootloader and OTP know it: the modulus in 256 bytes and the
// exponent in 8, both little endian.
func Encode(k *rsa.PublicKey) []byte {
	b := make([]byte, 264)
	k.N.FillBytes(b[:256])
	slices.Reverse(b[:256])
	for i, e := 0, uint64(k.E); i < 8; i, e = i+1, e>>8 {
		b[256+i] = byte(e)
	}
	return b
}

// Fingerprint is what is burnt: the SHA-256 of Encode, in hexadecimal digits.
func Fingerprint(k *rsa.PublicKey) string {
	d := sha256.Sum256(Encode(k))
	return hex.EncodeToString(d[:])
}

// Confirmation is what the operator types, word for word. It holds the beginning of the
// fingerprint, so that nobody confirms one key and burns another.
func Confirmation(k *rsa.PublicKey) string {
	return "only key " + Fingerprint(k)[:8] + " will ever boot this pi"
}

// Files of Prepare. The burning ones are in a directory of their own.
const (
	FileReadme    = "README.txt"
	FileKey       = "pubkey.bin"
	FileHash      = "pubkey.sha256"
	FileTrialConf = "1-signed-boot/boot.conf"
	FileTrialCfg  = "1-signed-boot/config.txt"
	FileBurnConf  = "2-burn-otp/boot.conf"
	FileBurnCfg   = "2-burn-otp/config.txt"
)

// Prepare returns the files for a board, card.ModelPi4 or card.ModelPi5, by name.
func Prepare(k *rsa.PublicKey, model string) (map[string][]byte, error) {
	var recovery, burn string
	switch model {
	case card.ModelPi4:
		recovery = "secure-boot-recovery"
		// Without revoking the development key the ROM still starts bootloaders
		// from before signed boot, which check nothing.
		burn = "program_pubkey=1\nrevoke_devkey=1\n"
	case card.ModelPi5:
		recovery = "secure-boot-recovery5"
		burn = "program_pubkey=1\n"
	default:
		return nil, fmt.Errorf("model %q has no OTP: pi4 or pi5", model)
	}
	// Order 0xf1: the card, again and again. No network and no USB boot, whatever is plugged in.
	const conf = "[all]\nBOOT_UART=1\nBOOT_ORDER=0xf1\nSIGNED_BOOT=1\nENABLE_SELF_UPDATE=0\n"
	const cfg = "uart_2ndstage=1\nrecovery_metadata=1\n"
	return map[string][]byte{
		FileReadme:    []byte(readme(k, model, recovery)),
		FileKey:       Encode(k),
		FileHash:      []byte(Fingerprint(k) + "\n"),
		FileTrialConf: []byte(conf),
		FileTrialCfg:  []byte(cfg),
		FileBurnConf:  []byte(conf),
		FileBurnCfg:   []byte(cfg + burn),
	}, nil
}

func readme(k *rsa.PublicKey, model, recovery string) string {
	trial := `On a Pi 4 this step can be undone: write an ordinary bootloader with rpiboot.
Boot the Pi from a card of the release profile several times before step 2, and
see that "portcullis root detect" says signed-boot.`
	if model == card.ModelPi5 {
		trial = `A Pi 5 does not start a signed bootloader before its key is in OTP. Do step 1 and
step 2 in one session, and try the card first with boot_ramdisk=1 on a Pi whose
bootloader is untouched.`
	}
	return fmt.Sprintf(`Signed boot for a %s, prepared by portcullis root prepare-otp
Key fingerprint (what step 2 burns): %s

Nothing in this directory has been written to any Pi. You need Raspberry Pi's usbboot
tools (rpiboot), the private boot key, and a USB cable. Keep two copies of that key
in two places: when it is lost after step 2, this Pi never boots anything new.

STEP 1, signed bootloader
  Copy boot.conf and config.txt from 1-signed-boot into usbboot/%s, then there:
    ../tools/update-pieeprom.sh -k PRIVATE_BOOT_KEY.pem
    ../rpiboot -d .
%s

STEP 2, IRREVERSIBLE
  Compare first: the SHA-256 of the pubkey.bin that update-pieeprom.sh has put into
  pieeprom.bin must be the fingerprint above.
  Copy boot.conf and config.txt from 2-burn-otp into usbboot/%s, then there:
    ../tools/update-pieeprom.sh -k PRIVATE_BOOT_KEY.pem
    ../rpiboot -d .
  From then on this board starts only what this key has signed, for ever.
  See afterwards that "portcullis root detect" says signed-boot+otp.
`, model, Fingerprint(k), recovery, trial, recovery)
}
