package record

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"

	"golang.org/x/mod/sumdb/note"
)

// OriginPrefix begins the name of every log of approvals.
const OriginPrefix = "portcullis/approvals/"

// Origin names the log that this key signs, in its checkpoints and to witnesses.
func Origin(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return OriginPrefix + hex.EncodeToString(sum[:8])
}

// Verifier checks the checkpoints of the log that this key signs.
func Verifier(public ed25519.PublicKey) (note.Verifier, error) {
	vkey, err := note.NewEd25519VerifierKey(Origin(public), public)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(vkey)
}

// signer signs checkpoints: text that begins with the log's origin.
type signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s *signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }
