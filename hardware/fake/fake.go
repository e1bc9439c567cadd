// Package fake is a root of trust in memory or in a file, for tests and for the lab. It
// refuses what hardware refuses: other software, an older release, another chip,
// a second unseal after the cap, too many wrong tries. A release image cannot
// use it: New wants to know the profile.
package fake

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"portcullis/hardware"
	"portcullis/images/card"
	"portcullis/internal/clock"
)

// ReasonProfile: somebody wants the fake in an image that is not for development.
const ReasonProfile hardware.Reason = "fake-in-release"

// Config describes a chip.
type Config struct {
	// Profile is the image's; anything but card.ProfileDev is refused.
	Profile string
	// Path keeps the chip over restarts; empty: in memory.
	Path string
	// Approved are the measured states that may unseal, each with the sequence of
	// its release. It is the policy file of a real chip.
	Approved map[[32]byte]uint64
	// MaxTries wrong tries lock the chip for LockoutFor. 0: 8 tries, 10 minutes.
	MaxTries   int
	LockoutFor time.Duration
	Clock      clock.Clock
	Random     io.Reader
}

// Chip is the fake. Unlike real ones it may be used concurrently, by tests.
type Chip struct {
	mu      sync.Mutex
	c       Config
	s       state
	tampers chan hardware.Tamper

	// What a power cycle resets.
	measured [32]byte
	capped   bool
	shown    hardware.Indication
}

var (
	_ hardware.Root   = (*Chip)(nil)
	_ hardware.Capper = (*Chip)(nil)
)

// New opens the chip at c.Path or makes one.
func New(c Config) (*Chip, error) {
	if c.Profile != card.ProfileDev {
		return nil, &hardware.Error{Reason: ReasonProfile, Err: fmt.Errorf("profile %q has no use for a chip that is none", c.Profile)}
	}
	if c.MaxTries <= 0 {
		c.MaxTries = 8
	}
	if c.LockoutFor <= 0 {
		c.LockoutFor = 10 * time.Minute
	}
	if c.Clock == nil {
		c.Clock = clock.Real{}
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	k := &Chip{c: c, tampers: make(chan hardware.Tamper, 16), shown: hardware.IndicateOff}
	if err := k.load(); err != nil {
		return nil, err
	}
	return k, nil
}

// blob is what Seal returns. The key itself stays in the chip.
type blob struct {
	Version int    `json:"version"`
	Chip    string `json:"chip"`
	ID      string `json:"id"`
	Nonce   []byte `json:"nonce"`
	Box     []byte `json:"box"`
}

// Identify says that it is a fake.
func (k *Chip) Identify(context.Context) (hardware.Identity, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return hardware.Identity{Backend: hardware.BackendFake, Manufacturer: "none", Model: "fake", Serial: k.s.id(), UnverifiedOnHardware: true}, nil
}

// Random returns n bytes.
func (k *Chip) Random(_ context.Context, n int) ([]byte, error) {
	if n < 1 || n > 512 {
		return nil, fail(hardware.ReasonFailed, "%d bytes are not 1 to 512", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(k.c.Random, b)
	return b, err
}

// Seal keeps a key for the blob in the chip and encrypts secret with it.
func (k *Chip) Seal(_ context.Context, label string, secret []byte) (json.RawMessage, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(secret) < 1 || len(secret) > 64 {
		return nil, fail(hardware.ReasonFailed, "a secret of %d bytes is not 1 to 64", len(secret))
	}
	fresh := make([]byte, 16+32+12)
	if _, err := io.ReadFull(k.c.Random, fresh); err != nil {
		return nil, err
	}
	b := blob{Version: 1, Chip: k.s.id(), ID: hex.EncodeToString(fresh[:16]), Nonce: fresh[48:]}
	box, err := gcm(fresh[16:48], label)
	if err != nil {
		return nil, err
	}
	b.Box = box.Seal(nil, b.Nonce, secret, []byte(b.ID))
	k.s.Keys[b.ID] = bytes.Clone(fresh[16:48])
	if err := k.save(); err != nil {
		delete(k.s.Keys, b.ID)
		return nil, err
	}
	return json.Marshal(b)
}

// Unseal checks in the order of a TPM: lockout, the object itself, the policy, then
// the authorisation, whose failures count.
func (k *Chip) Unseal(_ context.Context, label string, raw json.RawMessage) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.c.Clock.Now(); now.Before(k.s.LockedUntil) {
		return nil, fail(hardware.ReasonLockout, "locked for another %s", k.s.LockedUntil.Sub(now).Round(time.Second))
	}
	var b blob
	if err := hardware.DecodeStrict(raw, &b); err != nil || b.Version != 1 || len(b.Nonce) != 12 {
		return nil, fail(hardware.ReasonBadBlob, "no blob of this chip's kind")
	}
	if b.Chip != k.s.id() {
		return nil, fail(hardware.ReasonForeignBlob, "sealed by another chip")
	}
	key, ok := k.s.Keys[b.ID]
	if !ok {
		return nil, fail(hardware.ReasonBadBlob, "this chip has no such object, or has forgotten it")
	}
	if err := k.policy(); err != nil {
		return nil, err
	}
	box, err := gcm(key, label)
	if err != nil {
		return nil, err
	}
	secret, err := box.Open(nil, b.Nonce, b.Box, []byte(b.ID))
	if err != nil {
		if k.s.Tries++; k.s.Tries >= k.c.MaxTries {
			k.s.Tries, k.s.LockedUntil = 0, k.c.Clock.Now().Add(k.c.LockoutFor)
		}
		return nil, errors.Join(fail(hardware.ReasonBadBlob, "another label, or an edited blob"), k.save())
	}
	if k.s.Tries != 0 {
		k.s.Tries = 0
		if err := k.save(); err != nil {
			clear(secret)
			return nil, err
		}
	}
	return secret, nil
}

func (k *Chip) policy() error {
	if k.capped {
		return fail(hardware.ReasonPolicy, "capped until the next power cycle")
	}
	seq, ok := k.c.Approved[k.measured]
	if !ok {
		return fail(hardware.ReasonPolicy, "nobody approved the measured state %x", k.measured[:4])
	}
	if k.s.Counter > seq {
		return fail(hardware.ReasonPolicy, "release %d is older than %d, which this chip has accepted", seq, k.s.Counter)
	}
	return nil
}

// Sign signs with the chip's key.
func (k *Chip) Sign(_ context.Context, digest [32]byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), k.s.Key)
	if err != nil {
		return nil, err
	}
	return ecdsa.SignASN1(rand.Reader, key, digest[:])
}

// Forget drops the blob's key.
func (k *Chip) Forget(_ context.Context, raw json.RawMessage) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var b blob
	if err := hardware.DecodeStrict(raw, &b); err != nil {
		return fail(hardware.ReasonBadBlob, "no blob of this chip's kind")
	}
	if b.Chip != k.s.id() {
		return fail(hardware.ReasonForeignBlob, "sealed by another chip")
	}
	clear(k.s.Keys[b.ID])
	delete(k.s.Keys, b.ID)
	return k.save()
}

// Cap closes the policy until PowerCycle.
func (k *Chip) Cap(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.capped = true
	return nil
}

// Tampers reports what Breach was told.
func (k *Chip) Tampers(ctx context.Context) (<-chan hardware.Tamper, error) {
	out := make(chan hardware.Tamper)
	go func() {
		defer close(out)
		for {
			select {
			case t := <-k.tampers:
				select {
				case out <- t:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// Indicate remembers the state for Shown.
func (k *Chip) Indicate(_ context.Context, s hardware.Indication) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shown = s
	return nil
}

// Close has nothing to close: every change is on the disk already.
func (k *Chip) Close() error { return nil }

func gcm(key []byte, label string) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, key, nil, "fake "+label, 32)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	c, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(c)
}

func fail(r hardware.Reason, format string, args ...any) error {
	return &hardware.Error{Reason: r, Err: fmt.Errorf(format, args...)}
}
