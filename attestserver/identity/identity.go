// Package identity keeps the gateway's Ed25519 key, the one that a PC's image
// pins. It is made on the device at first start and never leaves it. attestd
// and the lab may call it.
package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrMode is a key file that others than its owner may open.
var ErrMode = errors.New("key file is open to others")

// ErrFormat is a file that holds no PKCS#8 PEM Ed25519 key.
var ErrFormat = errors.New("not a PKCS#8 PEM Ed25519 key")

const pemType = "PRIVATE KEY"

// LoadOrCreate returns the key in the file at path. Where there is no file it
// makes a key and writes it (mode 0600, on the disk before it returns); of two
// callers at the same time one makes it and both get the same.
func LoadOrCreate(path string) (ed25519.PrivateKey, error) {
	key, err := Load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := create(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make gateway key %s: %w", path, err)
	}
	return Load(path)
}

// Load reads the key; it refuses a file with a mode wider than 0600.
func Load(path string) (ed25519.PrivateKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("gateway key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("gateway key %s: %w: mode %04o, want 0600", path, ErrMode, st.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("gateway key: %w", err)
	}
	defer clear(b)
	key, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("gateway key %s: %w", path, err)
	}
	return key, nil
}

// PublicKey returns the public half, what trust.json calls gateway_key.
func PublicKey(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func parse(b []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, ErrFormat
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: holds a %T", ErrFormat, k)
	}
	return key, nil
}

// create writes a fresh key beside path and links it into place, so that a
// crash leaves no half key and a file that is there is never replaced.
func create(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: pemType, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
