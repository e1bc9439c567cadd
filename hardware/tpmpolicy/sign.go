package tpmpolicy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// Branch is one policy: on this platform, with these registers, while the counter
// of accepted releases is not above Sequence.
type Branch struct {
	Platform Platform
	Sequence uint64           // of the release, 1 to 1<<31
	PCRs     map[int][32]byte // SHA-256 bank, 1 to 24 of the registers 0 to 23
	NVIndex  uint32           // of the counter, 0x01……
}

// MaxSequence is the highest sequence of a release.
const MaxSequence = 1 << 31

// Signed is a branch with the policy key's signature.
type Signed struct {
	Branch
	Signature []byte // ECDSA, ASN.1, over ToSign
}

// ErrSignature: the branch is not signed by that key, or was changed after.
var ErrSignature = errors.New("policy is not signed by the release's policy key")

// ToSign is the digest that the policy key signs: SHA-256 of the approved policy
// and the platform's policyRef (Part 3, 23.16: aHash).
func (b *Branch) ToSign() ([32]byte, error) {
	d, err := b.Digest()
	if err != nil {
		return d, err
	}
	return sha256.Sum256(append(d[:], Ref(b.Platform)...)), nil
}

// Sign signs a branch. A key in memory signs deterministically (RFC 6979): same
// inputs, same image. A key in a module uses its own randomness.
func Sign(key crypto.Signer, b Branch) (Signed, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return Signed{}, fmt.Errorf("policy key is %T, not ECDSA P-256", key.Public())
	}
	if _, err := KeyName(pub); err != nil {
		return Signed{}, err
	}
	h, err := b.ToSign()
	if err != nil {
		return Signed{}, err
	}
	var random io.Reader = rand.Reader
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		random = nil
	}
	sig, err := key.Sign(random, h[:], crypto.SHA256)
	if err != nil {
		return Signed{}, fmt.Errorf("sign policy: %w", err)
	}
	s := Signed{Branch: b, Signature: sig}
	return s, s.Verify(pub)
}

// Verify checks the signature.
func (s *Signed) Verify(pub *ecdsa.PublicKey) error {
	if _, err := KeyName(pub); err != nil {
		return err
	}
	h, err := s.ToSign()
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(pub, h[:], s.Signature) {
		return fmt.Errorf("%w (platform %s, sequence %d)", ErrSignature, s.Platform, s.Sequence)
	}
	return nil
}

func (b *Branch) check() error {
	if _, err := ParsePlatform(string(b.Platform)); err != nil {
		return err
	}
	if b.Sequence < 1 || b.Sequence > MaxSequence {
		return fmt.Errorf("policy: sequence %d is not between 1 and %d", b.Sequence, uint64(MaxSequence))
	}
	if b.NVIndex>>24 != 0x01 {
		return fmt.Errorf("policy: %#x is not an NV index", b.NVIndex)
	}
	if len(b.PCRs) == 0 {
		return errors.New("policy: no register")
	}
	for i, v := range b.PCRs {
		if i < 0 || i > 23 {
			return fmt.Errorf("policy: register %d is not between 0 and 23", i)
		}
		// A policy over a register that nobody fills holds for any software.
		if Empty(v) {
			return fmt.Errorf("policy: register %d is empty: it would bind nothing", i)
		}
	}
	return nil
}
