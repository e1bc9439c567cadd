package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"

	"golang.org/x/mod/sumdb/note"
)

// LogOrigin names the verdict log of the gateway with this key: the name in its
// checkpoints (C2SP tlog-checkpoint). The key is in it, so that no two gateways
// can be taken for one another.
func LogOrigin(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return "portcullis/verdicts/" + hex.EncodeToString(sum[:8])
}

// LogVerifier checks the checkpoints of that log.
func LogVerifier(public ed25519.PublicKey) (note.Verifier, error) {
	vkey, err := note.NewEd25519VerifierKey(LogOrigin(public), public)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(vkey)
}

// LogSigner signs checkpoints with the gateway's key. What it signs begins with
// the log's origin, which no TLS transcript and no token begins with.
func LogSigner(key ed25519.PrivateKey) (note.Signer, note.Verifier, error) {
	v, err := LogVerifier(PublicKey(key))
	if err != nil {
		return nil, nil, err
	}
	return &logSigner{v, key}, v, nil
}

type logSigner struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s *logSigner) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }
