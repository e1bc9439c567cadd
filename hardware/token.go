package hardware

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// TokenType is the type of our LUKS2 token. cryptsetup keeps it and does not touch it.
const TokenType = "portcullis-root"

// TokenVersion is the only version so far.
const TokenVersion = 1

// MaxToken caps an encoded token, in bytes; a LUKS2 header has 12 KiB for all JSON.
const MaxToken = 6 << 10

// Enrolment states. Only StateCommitted is ever opened: a volume in any other state
// holds nothing that is not on the card in the clear, and is made anew.
const (
	StateEnrolling = "enrolling"
	StateCommitted = "committed"
)

// Token binds keyslots to a root of trust. It is public.
type Token struct {
	Type     string          `json:"type"`     // TokenType
	Keyslots []string        `json:"keyslots"` // decimal numbers, as LUKS2 wants them
	Version  int             `json:"version"`
	State    string          `json:"state"`
	Backend  Backend         `json:"backend"`
	Posture  Posture         `json:"posture"`  // at enrolment
	Platform string          `json:"platform"` // who measured: self, efi
	Enrolled string          `json:"enrolled"` // RFC 3339, by the Pi's clock, which may be wrong
	Blob     json.RawMessage `json:"blob"`     // the backend's
}

// ParseToken reads a token strictly; the Blob is the backend's to check.
func ParseToken(b []byte) (*Token, error) {
	if len(b) > MaxToken {
		return nil, fmt.Errorf("%s token: %d bytes are more than %d", TokenType, len(b), MaxToken)
	}
	var t Token
	if err := DecodeStrict(b, &t); err != nil {
		return nil, fmt.Errorf("%s token: %w", TokenType, err)
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	return &t, nil
}

// Encode returns the JSON of a valid token.
func (t *Token) Encode() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	return json.Marshal(t)
}

func (t *Token) check() error {
	if t.Type != TokenType {
		return fmt.Errorf("token type %q is not %q", t.Type, TokenType)
	}
	if t.Version != TokenVersion {
		return fmt.Errorf("%s token: version %d is not %d: made by a newer release?", TokenType, t.Version, TokenVersion)
	}
	if t.State != StateEnrolling && t.State != StateCommitted {
		return fmt.Errorf("%s token: state %q is not known", TokenType, t.State)
	}
	if _, err := ParsePosture(string(t.Posture)); err != nil {
		return fmt.Errorf("%s token: %w", TokenType, err)
	}
	if len(t.Keyslots) != 1 {
		return fmt.Errorf("%s token: %d keyslots instead of 1", TokenType, len(t.Keyslots))
	}
	if n, err := strconv.Atoi(t.Keyslots[0]); err != nil || n < 0 || n > 31 || strconv.Itoa(n) != t.Keyslots[0] {
		return fmt.Errorf("%s token: %q is not a keyslot", TokenType, t.Keyslots[0])
	}
	switch t.Backend {
	case BackendTPM2, BackendZymbit, BackendCombined, BackendFake:
	default:
		return fmt.Errorf("%s token: backend %q is not known", TokenType, t.Backend)
	}
	if t.Platform != "self" && t.Platform != "efi" {
		return fmt.Errorf("%s token: platform %q is not known", TokenType, t.Platform)
	}
	if len(t.Blob) == 0 || !json.Valid(t.Blob) || string(t.Blob) == "null" {
		return fmt.Errorf("%s token: no blob", TokenType)
	}
	return nil
}

// DecodeStrict reads one JSON object into v: no unknown keys, nothing behind it.
func DecodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the object")
	}
	return nil
}
