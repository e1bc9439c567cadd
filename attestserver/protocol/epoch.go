package protocol

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
)

// Epoch is the ratchet of a boot session: a secret that both ends carry from one
// connection to the next. The first comes of the first connection; each further
// one of the secret before it and a fresh key exchange. Who copies the agent's
// keys at one moment is out at the next epoch, unless he was on the wire in
// between; who joins late has no epoch at all.
type Epoch struct {
	Number uint64 // 1, 2, 3 … within the boot session
	key    [32]byte
}

const (
	epochExporter = "EXPORTER-portcullis-epoch-v1"
	epochLabel    = "portcullis-epoch-v1"
	proofLabel    = "portcullis-epoch-proof-v1"
	boundLabel    = "portcullis-bound-v1"
)

// EpochSecret is what a connection gives to the ratchet: an exporter of its own,
// so that it is no function of what the binding shows.
func EpochSecret(cs tls.ConnectionState) ([32]byte, error) {
	if cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete || cs.DidResume {
		return [32]byte{}, fmt.Errorf("%w: not a full TLS 1.3 handshake", ErrBinding)
	}
	b, err := cs.ExportKeyingMaterial(epochExporter, nil, 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("%w: %v", ErrBinding, err)
	}
	return [32]byte(b), nil
}

// NextEpoch ratchets: HKDF-SHA256 with the connection's secret as key material,
// the epoch before as salt (none before the first) and label ‖ session ‖ number ‖
// binding as context.
func NextEpoch(before *Epoch, session string, secret [32]byte, binding Binding) (*Epoch, error) {
	next := &Epoch{Number: 1}
	var salt []byte
	if before != nil {
		next.Number, salt = before.Number+1, before.key[:]
	}
	var info transcript
	info.text(epochLabel)
	info.text(session)
	info.number(next.Number)
	info.bytes(binding[:])
	k, err := hkdf.Key(sha256.New, secret[:], salt, string(info), len(next.key))
	if err != nil {
		return nil, err
	}
	copy(next.key[:], k)
	clear(k)
	return next, nil
}

// Proof shows on a new connection that its sender has the epoch: an HMAC over
// the claim, which is bound to that connection.
func (e *Epoch) Proof(claim []byte) [32]byte {
	h := hmac.New(sha256.New, e.key[:])
	writeField(h, []byte(proofLabel))
	writeField(h, claim)
	return Sum(h)
}

// Bind joins the epoch to a connection's binding. Evidence and the keys of ops
// are made with the result: a signature of the agent's key alone is not enough.
func (e *Epoch) Bind(binding Binding) (b Binding) {
	h := sha512.New()
	for _, f := range [][]byte{[]byte(boundLabel), binding[:], binary.BigEndian.AppendUint64(nil, e.Number), e.key[:]} {
		writeField(h, f)
	}
	h.Sum(b[:0])
	return b
}

// Same tells whether two epochs are one, in constant time.
func (e *Epoch) Same(o *Epoch) bool { return e.Number == o.Number && hmac.Equal(e.key[:], o.key[:]) }

// Wipe forgets the secret.
func (e *Epoch) Wipe() {
	if e != nil {
		clear(e.key[:])
	}
}

// Key returns the secret, for the one who keeps it over a restart.
func (e *Epoch) Key() [32]byte { return e.key }

// OldEpoch is an epoch that was kept.
func OldEpoch(number uint64, key [32]byte) *Epoch { return &Epoch{Number: number, key: key} }
