package pi

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"portcullis/images/manifest"
)

// Suffixes of a prefix under which the three keys of a Pi's releases are kept.
// The release key itself has none; the public half of each ends in manifest.PublicSuffix.
const (
	PolicySuffix = ".policy" // ECDSA P-256: signs the policies that the chip obeys
	BootSuffix   = ".boot"   // RSA-2048: signs boot.img for the Pi's bootloader
)

// bootBits is the only size of RSA key that the Pi's boot ROM knows.
const bootBits = 2048

// maxKeyFile bounds a key file in bytes.
const maxKeyFile = 16 << 10

// Keys sign a release: the image's and the update's manifest, the policies of the
// chip, the boot image.
type Keys struct {
	Release ed25519.PrivateKey
	Policy  *ecdsa.PrivateKey
	Boot    *rsa.PrivateKey
}

// GenerateKeys makes the three keys as prefix, prefix.policy and prefix.boot
// (PKCS #8 in PEM, mode 0600) with a .pub beside each. It never overwrites a
// file and makes none where one of them is there already.
func GenerateKeys(prefix string) (*Keys, error) {
	for _, s := range []string{"", PolicySuffix, BootSuffix} {
		for _, p := range []string{prefix + s, prefix + s + manifest.PublicSuffix} {
			if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
				return nil, fmt.Errorf("generate keys: %s: %w", p, os.ErrExist)
			}
		}
	}
	policy, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate keys: %w", err)
	}
	boot, err := rsa.GenerateKey(rand.Reader, bootBits)
	if err != nil {
		return nil, fmt.Errorf("generate keys: %w", err)
	}
	if err := writePair(prefix+PolicySuffix, policy, &policy.PublicKey); err != nil {
		return nil, err
	}
	if err := writePair(prefix+BootSuffix, boot, &boot.PublicKey); err != nil {
		return nil, err
	}
	if _, err := manifest.GenerateKey(prefix); err != nil {
		return nil, err
	}
	return LoadKeys(prefix)
}

func writePair(path string, private, public any) error {
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("generate keys: %w", err)
	}
	defer clear(der)
	if err := writePEM(path, 0o600, "PRIVATE KEY", der); err != nil {
		return err
	}
	if der, err = x509.MarshalPKIXPublicKey(public); err != nil {
		return fmt.Errorf("generate keys: %w", err)
	}
	return writePEM(path+manifest.PublicSuffix, 0o644, "PUBLIC KEY", der)
}

func writePEM(path string, mode os.FileMode, kind string, der []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return fmt.Errorf("generate keys: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	defer clear(text)
	if _, err := f.Write(text); err != nil {
		f.Close()
		return fmt.Errorf("generate keys: %w", err)
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return fmt.Errorf("generate keys: %w", err)
	}
	return f.Close()
}

// LoadKeys reads what GenerateKeys wrote. Files that others than their owner can
// read are refused.
func LoadKeys(prefix string) (*Keys, error) {
	k := new(Keys)
	var err error
	if k.Release, err = manifest.LoadKey(prefix); err != nil {
		return nil, err
	}
	policy, err := loadPEM(prefix + PolicySuffix)
	if err != nil {
		return nil, err
	}
	var ok bool
	if k.Policy, ok = policy.(*ecdsa.PrivateKey); !ok || k.Policy.Curve != elliptic.P256() {
		return nil, fmt.Errorf("load key %s: not an ECDSA P-256 key", prefix+PolicySuffix)
	}
	boot, err := loadPEM(prefix + BootSuffix)
	if err != nil {
		return nil, err
	}
	if k.Boot, ok = boot.(*rsa.PrivateKey); !ok || k.Boot.N.BitLen() != bootBits {
		return nil, fmt.Errorf("load key %s: not an RSA key of %d bits", prefix+BootSuffix, bootBits)
	}
	return k, nil
}

func loadPEM(path string) (any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("load key %s: mode %v; use chmod 600", path, st.Mode())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("load key %s: %w", path, err)
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("load key %s: not PEM", path)
	}
	defer clear(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("load key %s: not PKCS #8", path)
	}
	return key, nil
}

// Public returns the public half of the release key.
func (k *Keys) Public() ed25519.PublicKey { return k.Release.Public().(ed25519.PublicKey) }
