// Package zymbit is the root of trust behind a Zymkey, HSM4, HSM6 or SCM. Exec runs the
// vendor's tools and is for the initramfs; Client speaks to zymbitd, the only
// process that loads the vendor's library. The rest are the parts around them:
// settings, wake pin, the files an image needs. Everything here was met by its
// fakes only; no part was run against a module.
package zymbit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"

	"portcullis/hardware"
)

// Reasons of this backend.
const (
	// ReasonRefused: the vendor's tool ran and gave nothing. It does not say why: not
	// bound to this card and Pi, another module's file, or a bus that failed.
	ReasonRefused hardware.Reason = "zymbit-refused"
	// ReasonOutput: the tool succeeded, but what it wrote is not what was locked.
	ReasonOutput hardware.Reason = "zymbit-output"
)

// Version is the only version of the blob.
const Version = 1

// MaxLocked caps what the vendor's tool may make of a payload, in bytes.
const MaxLocked = 2048

// Blob is what Seal returns: the vendor's locked file itself, so that a token needs
// nothing else of the disk. It is public.
type Blob struct {
	Version int    `json:"version"`
	Locked  []byte `json:"locked"`
}

// ParseBlob reads a Blob strictly.
func ParseBlob(raw json.RawMessage) (*Blob, error) {
	if len(raw) > hardware.MaxToken {
		return nil, fmt.Errorf("%d bytes are more than %d", len(raw), hardware.MaxToken)
	}
	var b Blob
	if err := hardware.DecodeStrict(raw, &b); err != nil {
		return nil, err
	}
	if b.Version != Version {
		return nil, fmt.Errorf("version %d is not %d", b.Version, Version)
	}
	if len(b.Locked) < 1 || len(b.Locked) > MaxLocked {
		return nil, fmt.Errorf("a locked file of %d bytes is not 1 to %d", len(b.Locked), MaxLocked)
	}
	return &b, nil
}

// payload is what is locked: a magic, the digest of the label, the secret's length and
// the secret. The module knows no labels, so a file locked for another purpose
// must be told apart here, and so must half of a file.
var magic = []byte("PCZ1")

const headSize = 4 + sha256.Size + 1

func payload(label string, secret []byte) []byte {
	p := make([]byte, 0, headSize+len(secret))
	p = append(p, magic...)
	l := sha256.Sum256([]byte(label))
	p = append(p, l[:]...)
	p = append(p, byte(len(secret)))
	return append(p, secret...)
}

// open returns the secret of a payload that was locked under label.
func open(label string, p []byte) ([]byte, error) {
	if len(p) < headSize+1 || !bytes.Equal(p[:4], magic) {
		return nil, &hardware.Error{Reason: ReasonOutput, Err: fmt.Errorf("%d bytes came out that are no payload", len(p))}
	}
	l := sha256.Sum256([]byte(label))
	if subtle.ConstantTimeCompare(p[4:4+sha256.Size], l[:]) != 1 {
		return nil, &hardware.Error{Reason: hardware.ReasonBadBlob, Err: errors.New("locked under another label")}
	}
	n := int(p[headSize-1])
	if n < 1 || n > 64 || len(p) != headSize+n {
		return nil, &hardware.Error{Reason: ReasonOutput, Err: fmt.Errorf("%d bytes came out instead of %d", len(p), headSize+n)}
	}
	return bytes.Clone(p[headSize:]), nil
}

// locker is the one thing Exec and the library have in common.
type locker interface {
	lock(ctx context.Context, plain []byte) ([]byte, error)
	unlock(ctx context.Context, locked []byte) ([]byte, error)
}

func seal(ctx context.Context, l locker, label string, secret []byte) (json.RawMessage, error) {
	if len(secret) < 1 || len(secret) > 64 {
		return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("a secret of %d bytes is not 1 to 64", len(secret))}
	}
	p := payload(label, secret)
	defer clear(p)
	locked, err := l.lock(ctx, p)
	if err != nil {
		return nil, err
	}
	if len(locked) < 1 || len(locked) > MaxLocked || bytes.Contains(locked, secret) && len(secret) >= 16 {
		return nil, &hardware.Error{Reason: ReasonOutput, Err: fmt.Errorf("%d bytes are no locked file", len(locked))}
	}
	// A blob that does not open now would be found out at the next boot.
	back, err := l.unlock(ctx, locked)
	if err != nil {
		return nil, fmt.Errorf("what was just locked does not unlock: %w", err)
	}
	defer clear(back)
	if subtle.ConstantTimeCompare(back, p) != 1 {
		return nil, &hardware.Error{Reason: ReasonOutput, Err: errors.New("what was just locked unlocks to something else")}
	}
	return json.Marshal(Blob{Version: Version, Locked: locked})
}

func unseal(ctx context.Context, l locker, label string, raw json.RawMessage) ([]byte, error) {
	b, err := ParseBlob(raw)
	if err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonBadBlob, Err: err}
	}
	p, err := l.unlock(ctx, b.Locked)
	if err != nil {
		return nil, err
	}
	defer clear(p)
	return open(label, p)
}

func unsupported(what string) error {
	return &hardware.Error{Reason: hardware.ReasonUnsupported, Err: errors.New(what)}
}
