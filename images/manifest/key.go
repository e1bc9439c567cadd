package manifest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
)

// PublicSuffix ends the name of the public half of a key file.
const PublicSuffix = ".pub"

// pemType is the PEM label of PKCS #8 (RFC 7468 section 10).
const pemType = "PRIVATE KEY"

// GenerateKey makes an Ed25519 key, writes it to path (PKCS #8 in PEM, mode
// 0600) and its public half to path.pub (one line of standard base64). It never
// overwrites a file.
func GenerateKey(path string) (ed25519.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	if err := writeNew(path, 0o600, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})); err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	line := base64.StdEncoding.EncodeToString(public) + "\n"
	if err := writeNew(path+PublicSuffix, 0o644, []byte(line)); err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return public, nil
}

// LoadKey reads a key file of GenerateKey. It refuses one that anybody but its
// owner can read, with ReasonKey.
func LoadKey(path string) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	defer f.Close()
	// The mode is asked of the open file: asking by name would leave a gap.
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, refuse(ReasonKey, "%s has mode %v; use chmod 600", path, st.Mode())
	}
	data, err := readSmall(f)
	if err != nil {
		return nil, fmt.Errorf("load key %s: %w", path, err)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemType || len(bytes.TrimSpace(rest)) != 0 {
		return nil, refuse(ReasonKey, "%s is not one PEM block %q", path, pemType)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, refuse(ReasonKey, "%s is not PKCS #8", path)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, refuse(ReasonKey, "%s holds a %T, an Ed25519 key is needed", path, key)
	}
	return private, nil
}

// LoadPublicKey reads the public half written by GenerateKey.
func LoadPublicKey(path string) (ed25519.PublicKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load public key: %w", err)
	}
	defer f.Close()
	data, err := readSmall(f)
	if err != nil {
		return nil, fmt.Errorf("load public key %s: %w", path, err)
	}
	key, err := decodeKey(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, refuse(ReasonKey, "%s: %v", path, err)
	}
	return key, nil
}
