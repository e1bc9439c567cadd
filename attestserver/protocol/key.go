// Package protocol is what the PC's agent and the gateway's attestd share: the
// messages of the agent channel, their framing, the binding to the TLS
// connection, the keyed hashing and the seam between probes and expectations.
// It may be called by both sides; it reads no file and opens no connection.
package protocol

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// OpKey keys the digest of one op in one challenge. It cannot be known before
// the challenge arrives and is of no use on another connection.
type OpKey [32]byte

const opLabel = "portcullis-op-v1"

// OpKeys makes the keys of one challenge's ops: HKDF-SHA256 (RFC 5869) with the
// challenge's nonce as key material and label, channel binding, challenge id and index
// of the op as info.
type OpKeys struct {
	prk  []byte
	info []byte // without the index
}

// NewOpKeys does what all keys of a challenge have in common.
func NewOpKeys(nonce [32]byte, binding Binding, id [16]byte) (*OpKeys, error) {
	prk, err := hkdf.Extract(sha256.New, nonce[:], nil)
	if err != nil {
		return nil, err
	}
	info := make([]byte, 0, len(opLabel)+len(binding)+len(id))
	info = append(info, opLabel...)
	info = append(info, binding[:]...)
	return &OpKeys{prk, append(info, id[:]...)}, nil
}

// Key is that of op index.
func (k *OpKeys) Key(index uint32) (OpKey, error) {
	info := binary.BigEndian.AppendUint32(k.info[:len(k.info):len(k.info)], index)
	b, err := hkdf.Expand(sha256.New, k.prk, string(info), 32)
	if err != nil {
		return OpKey{}, err
	}
	return OpKey(b), nil
}

// DeriveOpKey is one key of them.
func DeriveOpKey(nonce [32]byte, binding Binding, id [16]byte, index uint32) (OpKey, error) {
	k, err := NewOpKeys(nonce, binding, id)
	if err != nil {
		return OpKey{}, err
	}
	return k.Key(index)
}

// NewDigest starts the keyed digest of an op: HMAC-SHA256(key, canonical(op) ‖
// bytes). The bytes that the probe read are written to it; canonical(op) is the
// name and the parameters, each with its length before it.
func (k OpKey) NewDigest(name string, params []byte) hash.Hash { return k.MACs().begin(name, params) }

// MACs makes many digests with one key: what HMAC makes of the key is made once, and an
// answer has hundreds of them. One goroutine at a time has it.
type MACs struct {
	h    hash.Hash
	used bool
	t    transcript // is written down here before it is hashed
	sum  [sha256.Size]byte
}

// MACs is for digests one after the other.
func (k OpKey) MACs() *MACs { return &MACs{h: hmac.New(sha256.New, k[:])} }

// begin is NewDigest. The digest before must be over.
func (m *MACs) begin(name string, params []byte) hash.Hash {
	if m.used {
		m.h.Reset()
	}
	m.used, m.t = true, m.t[:0]
	m.t.text(name)
	m.t.bytes(params)
	m.h.Write(m.t)
	m.t = m.t[:0]
	return m.h
}

// end is the digest that was begun, until the next one.
func (m *MACs) end() []byte { return m.h.Sum(m.sum[:0]) }

// Digest is NewDigest over bytes that are at hand.
func (k OpKey) Digest(name string, params, data []byte) [32]byte {
	h := k.NewDigest(name, params)
	h.Write(data)
	return Sum(h)
}

// Sum returns the state of a 32-byte hash.
func Sum(h hash.Hash) (d [32]byte) {
	h.Sum(d[:0])
	return d
}

// SameDigest compares in constant time.
func SameDigest(a, b [32]byte) bool { return hmac.Equal(a[:], b[:]) }

// ReferenceKey names references that are taken per image and CPU class.
func ReferenceKey(st *ImageState) string {
	return hex.EncodeToString(st.Image.Digest[:16]) + "." + st.CPUClass
}

func writeField(h hash.Hash, b []byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(b)))
	h.Write(n[:])
	h.Write(b)
}
