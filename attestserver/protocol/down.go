package protocol

import (
	"crypto/ed25519"
	"errors"
	"fmt"
)

const downLabel = "portcullis-down-v1"

// ErrDown is a Down that the gateway did not sign for this connection.
var ErrDown = errors.New("down: not signed for this connection")

// DownTranscript is what the gateway signs: the action, the session and the
// connection. On another connection, or to another PC, it says nothing.
func DownTranscript(binding Binding, d *Down) []byte {
	var t transcript
	t.text(downLabel)
	t.bytes(binding[:], d.GetId())
	t.text(d.GetSession())
	t.number(flag(d.GetOff()))
	return t
}

// NewDown makes a signed Down.
func NewDown(key ed25519.PrivateKey, binding Binding, id [16]byte, session string, off bool) *Down {
	d := &Down{Id: id[:], Session: session, Off: off}
	d.Signature = ed25519.Sign(key, DownTranscript(binding, d))
	return d
}

// Check validates the sizes in a Down; it says nothing about the signature.
func (d *Down) Check() error {
	if len(d.GetId()) != 16 || len(d.GetSignature()) != ed25519.SignatureSize || !ValidSession(d.GetSession()) {
		return fmt.Errorf("%w: down", ErrMalformed)
	}
	return nil
}

// Verify checks d for the session and the connection it came on.
func (d *Down) Verify(gateway ed25519.PublicKey, binding Binding, session string) error {
	if err := d.Check(); err != nil {
		return err
	}
	if d.Session != session || !ed25519.Verify(gateway, DownTranscript(binding, d), d.Signature) {
		return ErrDown
	}
	return nil
}
