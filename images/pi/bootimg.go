package pi

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/card"
	"portcullis/images/debroot"
)

// maxBootImg is the most that boot.img may have, in bytes: smaller starts sooner. The
// Pi 5's kernel alone takes 18 MB of it; its bootloader is known to fail with a signed
// image whose initramfs has more than 30 MB.
const maxBootImg = 20 << 20

// outerConfig is the config.txt beside boot.img: the firmware is to take
// everything else out of the image.
const outerConfig = "# Everything that is started is inside the signed boot.img.\nboot_ramdisk=1\n"

// seal puts all files into boot.img and signs it.
func (b *builder) seal(p *bootPartition, epoch int64) error {
	var total int64
	for _, f := range p.files {
		total += (int64(len(f)) + 4095) &^ 4095
	}
	// Room for the tables; the firmware reads the whole image into memory.
	size := (total + total/128 + 256<<10) &^ (64<<10 - 1)
	if size > maxBootImg {
		return refuse(debroot.ReasonTooLarge, "boot.img would have %d bytes, more than %d MiB: take modules out", size, maxBootImg>>20)
	}
	dir, err := os.MkdirTemp(b.m.CacheDir, ".boot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, card.BootImgFile)
	digest := card.BootDigest(p.files)
	if err := writeFAT(path, size, "PCBOOT", digest[:], time.Unix(epoch, 0), p.files); err != nil {
		return err
	}
	img, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	sig, err := signBoot(b.o.Keys.Boot, img, epoch)
	if err != nil {
		return err
	}
	p.files = map[string][]byte{card.BootImgFile: img, card.BootSigFile: sig, card.ConfigFile: []byte(outerConfig)}
	return nil
}

// signBoot returns boot.sig as the Pi's bootloader reads it (rpi-eeprom-digest):
// three lines with the SHA-256 of the image, the time of signing in seconds since
// 1970 and the RSA-2048 signature, PKCS #1 v1.5 with SHA-256, all but the time in hex.
func signBoot(key *rsa.PrivateKey, img []byte, epoch int64) ([]byte, error) {
	sum := sha256.Sum256(img)
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return nil, fmt.Errorf("sign boot.img: %w", err)
	}
	return fmt.Appendf(nil, "%x\nts: %d\nrsa2048: %x\n", sum, epoch, sig), nil
}
