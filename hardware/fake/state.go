package fake

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"portcullis/hardware"
)

// state is what the chip keeps without power.
type state struct {
	Version     int               `json:"version"`
	Key         []byte            `json:"key"`
	Keys        map[string][]byte `json:"keys"`
	Counter     uint64            `json:"counter"`
	Tries       int               `json:"tries"`
	LockedUntil time.Time         `json:"locked_until"`
}

func (s *state) id() string {
	d := sha256.Sum256(append([]byte("fake id"), s.Key...))
	return hex.EncodeToString(d[:8])
}

func (k *Chip) load() error {
	if k.c.Path != "" {
		b, err := os.ReadFile(k.c.Path)
		if err == nil {
			if err := hardware.DecodeStrict(b, &k.s); err != nil || k.s.Version != 1 || len(k.s.Key) != 32 || k.s.Keys == nil {
				return fail(hardware.ReasonFailed, "%s is no chip: %v", k.c.Path, err)
			}
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	raw, err := key.Bytes()
	if err != nil {
		return err
	}
	k.s = state{Version: 1, Key: raw, Keys: map[string][]byte{}}
	return k.save()
}

// save replaces the file at once: a chip does not lose its keys in a power cut.
func (k *Chip) save() error {
	if k.c.Path == "" {
		return nil
	}
	b, err := json.Marshal(k.s)
	if err != nil {
		return err
	}
	defer clear(b)
	f, err := os.CreateTemp(filepath.Dir(k.c.Path), ".chip-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), k.c.Path)
}

// Measure extends the register that policies look at, as a TPM extends a PCR.
func (k *Chip) Measure(data []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.measured = Extend(k.measured, data)
}

// Extend is what Measure does, for predictions.
func Extend(value [32]byte, data []byte) [32]byte {
	d := sha256.Sum256(data)
	return sha256.Sum256(append(value[:], d[:]...))
}

// RaiseCounter raises the rollback counter; it never goes down.
func (k *Chip) RaiseCounter(to uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.s.Counter = max(k.s.Counter, to)
	return k.save()
}

// PowerCycle resets what a chip loses without power. Wrong tries and the lockout stay.
func (k *Chip) PowerCycle() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.measured, k.capped, k.shown = [32]byte{}, false, hardware.IndicateOff
}

// Breach makes the chip's own detectors see something.
func (k *Chip) Breach(t hardware.Tamper) { k.tampers <- t }

// Shown is the last indication.
func (k *Chip) Shown() hardware.Indication {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.shown
}

// Public is the key that Sign's signatures verify with.
func (k *Chip) Public() (*ecdsa.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), k.s.Key)
	if err != nil {
		return nil, err
	}
	return &key.PublicKey, nil
}
