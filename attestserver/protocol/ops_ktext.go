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

// KtextParams asks for digests and, when a reference is taken, for the bytes of
// the sites that the kernel patched at boot.
type KtextParams struct {
	Sites bool `json:"sites"`
}

// Check has nothing to refuse.
func (*KtextParams) Check() error { return nil }

// KtextData is the answer of op ktext.
type KtextData struct {
	Base  uint64 `json:"base"`        // virtual address
	Size  uint64 `json:"size"`        // bytes
	Mask  string `json:"mask_sha256"` // of the mask file that was applied
	MACs  []byte `json:"macs"`        // KtextMACSize bytes a piece, in order
	Sites []byte `json:"sites"`       // one zstd frame: the bytes of the boot-time sites, in order
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
func (m *MACs) KtextMAC(i int, piece []byte) [KtextMACSize]byte {
	m.begin("ktext-piece", binary.BigEndian.AppendUint64(nil, uint64(i))).Write(piece)
	return [KtextMACSize]byte(m.end())
}
