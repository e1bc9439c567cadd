// Package combined is a root of trust made of two: a TPM and a Zymbit module, both
// of which must give their share before a secret exists. pi-init and the root
// commands call it. It touches nothing but the two chips it is given.
package combined

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"portcullis/hardware"
)

// Version is the only version of the blob and of the derivation.
const Version = 1

// shareSize is the length of each chip's share, in bytes.
const shareSize = 32

// Reasons that name the half that is missing. The chip's own reason is in the chain.
const (
	ReasonTPMHalf    hardware.Reason = "combined-tpm-half"    // the TPM did not give its share
	ReasonZymbitHalf hardware.Reason = "combined-zymbit-half" // the Zymbit module did not give its share
	ReasonMismatch   hardware.Reason = "combined-mismatch"    // both gave a share, but not of the same secret
)

// Root needs both chips. It is not safe for concurrent use.
type Root struct {
	tpm, zymbit hardware.Root
	random      io.Reader
}

// New combines two chips; Close closes both.
func New(tpm, zymbit hardware.Root) *Root {
	return &Root{tpm: tpm, zymbit: zymbit, random: rand.Reader}
}

// Blob is what Seal returns. It is public.
type Blob struct {
	Version int             `json:"version"`
	TPM     json.RawMessage `json:"tpm"`
	Zymbit  json.RawMessage `json:"zymbit"`
	Nonce   []byte          `json:"nonce"` // AES-256-GCM, 12 bytes
	Box     []byte          `json:"box"`   // the secret under the derived key
}

// maxBlob caps an encoded Blob, in bytes.
const maxBlob = hardware.MaxToken

// ParseBlob reads a Blob strictly.
func ParseBlob(raw json.RawMessage) (*Blob, error) {
	if len(raw) > maxBlob {
		return nil, fmt.Errorf("%d bytes are more than %d", len(raw), maxBlob)
	}
	var b Blob
	if err := hardware.DecodeStrict(raw, &b); err != nil {
		return nil, err
	}
	switch {
	case b.Version != Version:
		return nil, fmt.Errorf("version %d is not %d", b.Version, Version)
	case len(b.TPM) == 0, len(b.Zymbit) == 0, string(b.TPM) == "null", string(b.Zymbit) == "null":
		return nil, errors.New("a half is missing")
	case len(b.Nonce) != 12, len(b.Box) < 16+1, len(b.Box) > 16+64:
		return nil, errors.New("the box has no sensible size")
	}
	return &b, nil
}

// Identify names both chips; it fails where either is absent.
func (r *Root) Identify(ctx context.Context) (hardware.Identity, error) {
	t, err := r.tpm.Identify(ctx)
	if err != nil {
		return hardware.Identity{}, half(ReasonTPMHalf, err)
	}
	z, err := r.zymbit.Identify(ctx)
	if err != nil {
		return hardware.Identity{}, half(ReasonZymbitHalf, err)
	}
	return hardware.Identity{Backend: hardware.BackendCombined,
		Manufacturer: t.Manufacturer + " + " + z.Manufacturer, Model: t.Model + " + " + z.Model,
		Firmware: t.Firmware + " + " + z.Firmware, Serial: t.Serial + " + " + z.Serial,
		UnverifiedOnHardware: t.UnverifiedOnHardware || z.UnverifiedOnHardware}, nil
}

// Random is the exclusive or of both chips' bytes: as good as the better of them.
func (r *Root) Random(ctx context.Context, n int) ([]byte, error) {
	a, err := r.tpm.Random(ctx, n)
	if err != nil {
		return nil, half(ReasonTPMHalf, err)
	}
	b, err := r.zymbit.Random(ctx, n)
	if err != nil {
		clear(a)
		return nil, half(ReasonZymbitHalf, err)
	}
	defer clear(b)
	if len(a) != n || len(b) != n {
		clear(a)
		return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("%d and %d random bytes instead of %d", len(a), len(b), n)}
	}
	for i := range a {
		a[i] ^= b[i]
	}
	return a, nil
}

// Seal gives each chip a share of its own and puts secret under a key derived from
// both.
func (r *Root) Seal(ctx context.Context, label string, secret []byte) (json.RawMessage, error) {
	return r.seal(ctx, label, secret, r.tpm.Seal)
}

func (r *Root) seal(ctx context.Context, label string, secret []byte, tpm func(context.Context, string, []byte) (json.RawMessage, error)) (json.RawMessage, error) {
	if len(secret) < 1 || len(secret) > 64 {
		return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("a secret of %d bytes is not 1 to 64", len(secret))}
	}
	var shares [2 * shareSize]byte
	defer clear(shares[:])
	b := Blob{Version: Version, Nonce: make([]byte, 12)}
	if _, err := io.ReadFull(r.random, shares[:]); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r.random, b.Nonce); err != nil {
		return nil, err
	}
	var err error
	if b.TPM, err = tpm(ctx, label, shares[:shareSize]); err != nil {
		return nil, half(ReasonTPMHalf, err)
	}
	if b.Zymbit, err = r.zymbit.Seal(ctx, label, shares[shareSize:]); err != nil {
		return nil, half(ReasonZymbitHalf, err)
	}
	box, err := gcm(shares[:shareSize], shares[shareSize:], label)
	if err != nil {
		return nil, err
	}
	b.Box = box.Seal(nil, b.Nonce, secret, nil)
	return json.Marshal(b)
}

// SealAfter is Seal with a TPM's share that Revoke spares.
func (r *Root) SealAfter(ctx context.Context, label string, secret []byte, before []json.RawMessage) (json.RawMessage, error) {
	t, ok := r.tpm.(hardware.Renewer)
	if !ok {
		return nil, &hardware.Error{Reason: hardware.ReasonUnsupported, Err: errors.New("the TPM half takes nothing back")}
	}
	halves := make([]json.RawMessage, len(before))
	for i, j := range before {
		halves[i] = j // of a TPM alone
		if b, err := ParseBlob(j); err == nil {
			halves[i] = b.TPM
		}
	}
	return r.seal(ctx, label, secret, func(ctx context.Context, label string, share []byte) (json.RawMessage, error) {
		return t.SealAfter(ctx, label, share, halves)
	})
}

// Revoke ends the TPM's share of every older blob; without it the other opens nothing.
func (r *Root) Revoke(ctx context.Context, blob json.RawMessage) error {
	b, err := ParseBlob(blob)
	if err != nil {
		return &hardware.Error{Reason: hardware.ReasonBadBlob, Err: err}
	}
	t, ok := r.tpm.(hardware.Renewer)
	if !ok {
		return &hardware.Error{Reason: hardware.ReasonUnsupported, Err: errors.New("the TPM half takes nothing back")}
	}
	if err := t.Revoke(ctx, b.TPM); err != nil {
		return half(ReasonTPMHalf, err)
	}
	return nil
}

// Unseal asks the TPM, then the Zymbit module; there is no secret with less.
func (r *Root) Unseal(ctx context.Context, label string, blob json.RawMessage) ([]byte, error) {
	b, err := ParseBlob(blob)
	if err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonBadBlob, Err: err}
	}
	t, err := r.tpm.Unseal(ctx, label, b.TPM)
	if err != nil {
		return nil, half(ReasonTPMHalf, err)
	}
	defer clear(t)
	z, err := r.zymbit.Unseal(ctx, label, b.Zymbit)
	if err != nil {
		return nil, half(ReasonZymbitHalf, err)
	}
	defer clear(z)
	box, err := gcm(t, z, label)
	if err != nil {
		return nil, err
	}
	secret, err := box.Open(nil, b.Nonce, b.Box, nil)
	if err != nil {
		return nil, &hardware.Error{Reason: ReasonMismatch, Err: errors.New("the two shares do not open the box: one of them belongs to another enrolment")}
	}
	return secret, nil
}

// gcm is AES-256-GCM under HKDF-SHA256 (RFC 5869). Each input is framed with its
// length, so that no byte can move from one share to the other; the label and the
// version are in the info.
func gcm(tpm, zymbit []byte, label string) (cipher.AEAD, error) {
	ikm := frame(frame(nil, tpm), zymbit)
	defer clear(ikm)
	info := frame([]byte(fmt.Sprintf("portcullis combined root v%d ", Version)), []byte(label))
	key, err := hkdf.Key(sha256.New, ikm, nil, string(info), 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(c)
}

func frame(to, b []byte) []byte {
	// Allocated at once: append would leave shares behind in the smaller array.
	out := make([]byte, 0, len(to)+4+len(b))
	out = append(out, to...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
	out = append(out, b...)
	if len(to) > 0 {
		clear(to)
	}
	return out
}

// Sign signs with the TPM's device key: it is the one that a quote comes from.
func (r *Root) Sign(ctx context.Context, digest [32]byte) ([]byte, error) {
	return r.tpm.Sign(ctx, digest)
}

// Forget makes both halves forget; one that can is enough, since both are needed.
func (r *Root) Forget(ctx context.Context, blob json.RawMessage) error {
	b, err := ParseBlob(blob)
	if err != nil {
		return &hardware.Error{Reason: hardware.ReasonBadBlob, Err: err}
	}
	te := r.tpm.Forget(ctx, b.TPM)
	ze := r.zymbit.Forget(ctx, b.Zymbit)
	if te != nil && ze != nil {
		return half(ReasonTPMHalf, errors.Join(te, half(ReasonZymbitHalf, ze)))
	}
	return nil
}

// Tampers merges the events of both chips.
func (r *Root) Tampers(ctx context.Context) (<-chan hardware.Tamper, error) {
	t, err := r.tpm.Tampers(ctx)
	if err != nil {
		return nil, half(ReasonTPMHalf, err)
	}
	z, err := r.zymbit.Tampers(ctx)
	if err != nil {
		return nil, half(ReasonZymbitHalf, err)
	}
	out := make(chan hardware.Tamper)
	var both sync.WaitGroup
	for _, in := range []<-chan hardware.Tamper{t, z} {
		both.Add(1)
		go func() {
			defer both.Done()
			for e := range in {
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	go func() { both.Wait(); close(out) }()
	return out, nil
}

// Indicate shows the state on whichever chip has a light.
func (r *Root) Indicate(ctx context.Context, s hardware.Indication) error {
	ze := r.zymbit.Indicate(ctx, s)
	te := r.tpm.Indicate(ctx, s)
	if ze != nil && te != nil {
		return ze
	}
	return nil
}

// Cap closes the TPM's half until the next power cycle; without it the Zymbit share
// opens nothing.
func (r *Root) Cap(ctx context.Context) error {
	c, ok := r.tpm.(hardware.Capper)
	if !ok {
		return &hardware.Error{Reason: hardware.ReasonUnsupported, Err: errors.New("the TPM half cannot be capped")}
	}
	if err := c.Cap(ctx); err != nil {
		return half(ReasonTPMHalf, err)
	}
	return nil
}

// Close closes both chips.
func (r *Root) Close() error { return errors.Join(r.tpm.Close(), r.zymbit.Close()) }

func half(reason hardware.Reason, err error) error { return &hardware.Error{Reason: reason, Err: err} }
