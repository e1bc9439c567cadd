package protocol

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
)

// Version is the protocol version in Hello.
const Version = 2

// Data of an op up to InlineData bytes travels in its OpResult, more in Chunks
// of ChunkSize.
const (
	InlineData = 32 << 10
	ChunkSize  = 256 << 10
)

// ErrMalformed is a message whose fields have impossible sizes or values.
var ErrMalformed = errors.New("malformed message")

// ValidSession tells whether s can be a boot session id: 26 characters of
// lower-case base32 (RFC 4648, no padding).
func ValidSession(s string) bool {
	return len(s) == 26 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// Check validates the sizes in a Hello.
func (h *Hello) Check() error {
	if h.GetVersion() != Version || len(h.GetNonce()) != 32 {
		return fmt.Errorf("%w: hello of version %d with a nonce of %d bytes", ErrMalformed, h.GetVersion(), len(h.GetNonce()))
	}
	return nil
}

// Check validates the sizes in a Claim; it says nothing about their truth.
func (c *Claim) Check() error {
	switch {
	case !ValidSession(c.GetSession()):
		return fmt.Errorf("%w: claim with a bad session id", ErrMalformed)
	case len(c.ManifestDigest) != 32, len(c.RootHash) != 32, len(c.Nonce) != 32,
		len(c.PublicKey) != ed25519.PublicKeySize, len(c.Signature) != ed25519.SignatureSize:
		return fmt.Errorf("%w: claim with a field of a wrong size", ErrMalformed)
	case c.Epoch == 0 && len(c.Proof) != 0, c.Epoch > 0 && len(c.Proof) != 32:
		return fmt.Errorf("%w: claim of epoch %d with a proof of %d bytes", ErrMalformed, c.Epoch, len(c.Proof))
	case c.UptimeMs < 0:
		return fmt.Errorf("%w: claim with a negative uptime", ErrMalformed)
	}
	return nil
}

// Check validates the sizes in a Challenge.
func (c *Challenge) Check() error {
	switch {
	case len(c.GetId()) != 16, len(c.GetNonce()) != 32, len(c.GetPrevious()) != 32:
		return fmt.Errorf("%w: challenge with a field of a wrong size", ErrMalformed)
	case !ValidSession(c.Session):
		return fmt.Errorf("%w: challenge with a bad session id", ErrMalformed)
	case c.Sequence == 0, c.DeadlineMs <= 0:
		return fmt.Errorf("%w: challenge without sequence or deadline", ErrMalformed)
	case len(c.Ops) == 0, len(c.Ops) > MaxOps:
		return fmt.Errorf("%w: challenge of %d ops", ErrMalformed, len(c.Ops))
	}
	for _, op := range c.Ops {
		if len(op.GetParams()) > MaxParams {
			return fmt.Errorf("%w: parameters of %d bytes", ErrMalformed, len(op.GetParams()))
		}
	}
	return nil
}

// Check validates the sizes in an Evidence.
func (e *Evidence) Check() error {
	switch {
	case len(e.GetId()) != 16, len(e.GetPrevious()) != 32, len(e.GetSignature()) != ed25519.SignatureSize:
		return fmt.Errorf("%w: evidence with a field of a wrong size", ErrMalformed)
	case e.Sequence == 0, e.StartedMs < 0, e.FinishedMs < e.StartedMs:
		return fmt.Errorf("%w: evidence with impossible numbers", ErrMalformed)
	case len(e.Results) == 0, len(e.Results) > MaxOps:
		return fmt.Errorf("%w: evidence of %d results", ErrMalformed, len(e.Results))
	}
	for _, r := range e.Results {
		switch {
		case r == nil, len(r.Digest) != 32, len(r.Data) > InlineData, len(r.Error) > MaxReasonBytes,
			r.DataSize > MaxEnrolData, r.StartedUs < 0, r.FinishedUs < r.StartedUs:
			return fmt.Errorf("%w: result with a field of a wrong size", ErrMalformed)
		}
	}
	return nil
}

// Check validates the sizes in a Chunk.
func (c *Chunk) Check() error {
	if len(c.GetId()) != 16 || len(c.GetData()) == 0 || len(c.GetData()) > ChunkSize || c.Index >= MaxOps ||
		c.Size > MaxEnrolData || c.Offset > c.Size || uint64(len(c.Data)) > c.Size-c.Offset {
		return fmt.Errorf("%w: chunk", ErrMalformed)
	}
	return nil
}
