package protocol

import (
	"errors"
	"fmt"
)

// Limits of op krodata.
const (
	MaxKernelRodata = 128 << 20 // bytes
	MaxRodataPieces = 256       // pieces that are sent whole
	IDTSize         = 4096      // bytes: 256 gates
)

// KrodataParams names the pieces to send whole, besides the digests of all.
type KrodataParams struct {
	Pieces []uint32 `json:"pieces"`
}

// Check bounds the list.
func (p *KrodataParams) Check() error { return atMost("pieces", len(p.Pieces), MaxRodataPieces) }

// KrodataData is the answer of op krodata. Pieces are KtextGranule bytes.
type KrodataData struct {
	Base  uint64 `json:"base"`   // virtual address
	Size  uint64 `json:"size"`   // bytes
	MACs  []byte `json:"macs"`   // KtextMACSize bytes a piece, in order
	Raw   []byte `json:"raw"`    // one zstd frame: the pieces that were asked for, in that order
	IDTAt uint64 `json:"idt_at"` // virtual address of the interrupt descriptor table
	IDT   []byte `json:"idt"`    // IDTSize bytes
}

// Check bounds the sizes.
func (d *KrodataData) Check() error {
	if d.Size == 0 || d.Size > MaxKernelRodata {
		return fmt.Errorf("kernel read-only data of %d bytes", d.Size)
	}
	if uint64(len(d.MACs)) != (d.Size+KtextGranule-1)/KtextGranule*KtextMACSize {
		return errors.New("as many digests are wanted as there are pieces")
	}
	if len(d.IDT) != IDTSize {
		return fmt.Errorf("interrupt table of %d bytes", len(d.IDT))
	}
	return nil
}
