package protocol

import (
	"bytes"
	"crypto/sha256"
	"slices"
)

const nonceLabel = "portcullis-nonce-v1"

// Sizes of a nonce that somebody else brings into a challenge, in bytes, and
// how many of them one challenge answers.
const (
	MinNonce  = 16
	MaxNonce  = 64
	MaxNonces = 32
)

// FoldNonces makes the nonce of a challenge that answers several at once:
// SHA-256 over the gateway's own 32 random bytes and the others' nonces, sorted,
// each with its length before it. Who finds his nonce in the list knows that the
// question was not asked before he asked; the gateway's own bytes keep him from
// choosing it.
func FoldNonces(own [32]byte, others [][]byte) [32]byte {
	sorted := slices.SortedFunc(slices.Values(others), bytes.Compare)
	h := sha256.New()
	writeField(h, []byte(nonceLabel))
	writeField(h, own[:])
	for _, n := range sorted {
		writeField(h, n)
	}
	return Sum(h)
}
