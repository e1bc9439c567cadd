package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// KtextGranule is the size in bytes of the pieces of kernel text that are
// compared one by one, so that a difference has an address.
const KtextGranule = 16 << 10

// KtextMACSize is the size in bytes of the keyed digest of one piece.
const KtextMACSize = 8

// MaxKernelText bounds the kernel text, in bytes.
const MaxKernelText = 256 << 20

// KtextParams asks for digests, or for the text itself when a reference is taken.
type KtextParams struct {
	Raw bool `json:"raw"`
}

// Check has nothing to refuse.
func (*KtextParams) Check() error { return nil }

// KtextData is the answer of op ktext. A raw answer is not this JSON but one
// or more zstd frames of the text with the masked bytes zeroed, and its keyed
// digest is over the pieces' digests.
type KtextData struct {
	Base  uint64 `json:"base"`        // virtual address
	Size  uint64 `json:"size"`        // bytes
	Mask  string `json:"mask_sha256"` // of the mask file that was applied
	MACs  []byte `json:"macs"`        // KtextMACSize bytes a piece, in order
	Swept int64  `json:"swept_us"`    // microseconds from the first byte to the last
}

// Check bounds the sizes.
func (d *KtextData) Check() error {
	if d.Size == 0 || d.Size > MaxKernelText {
		return fmt.Errorf("kernel text of %d bytes", d.Size)
	}
	pieces := (d.Size + KtextGranule - 1) / KtextGranule
	if uint64(len(d.MACs)) != pieces*KtextMACSize {
		return errors.New("as many digests are wanted as there are pieces")
	}
	return short("ktext", d.Mask)
}

// KtextMAC is the keyed digest of piece i.
func (k OpKey) KtextMAC(i int, piece []byte) (m [KtextMACSize]byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(i))
	h := k.NewDigest("ktext-piece", n[:])
	h.Write(piece)
	d := Sum(h)
	copy(m[:], d[:])
	return m
}
