package probe

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"

	"portcullis/attestserver/protocol"
)

// PUF answers with bits that follow from how one piece of DRAM was made: which
// cells lose their charge first when refresh is withheld (Xiong et al., CHES
// 2016). It is an EXPERIMENT: memory controllers of PCs with DDR4 and DDR5 do
// not let anybody withhold refresh, so the only PUF here is simulated, no agent
// of an image has one, and a verdict must not rest on it.
type PUF interface {
	// Response returns PUFBytes bytes. Two responses of one piece differ in a
	// few bits, those of two pieces in about half.
	Response() ([]byte, error)
}

// PUFBytes is the length of a response.
const PUFBytes = 128

// SimulatedPUF plays a PUF: the bits follow from Seed, and each is flipped with
// a chance of Noise 65536ths, drawn from Random. A real one needs no seed, which
// is the whole difference: whoever knows the seed can answer in its place.
type SimulatedPUF struct {
	Seed   [32]byte
	Noise  uint16
	Random io.Reader
}

// Response implements PUF.
func (p *SimulatedPUF) Response() ([]byte, error) {
	out := make([]byte, 0, PUFBytes)
	for i := byte(0); len(out) < PUFBytes; i++ {
		sum := sha256.Sum256(append([]byte{i}, p.Seed[:]...))
		out = append(out, sum[:]...)
	}
	noise := make([]byte, 2*8*PUFBytes)
	if _, err := io.ReadFull(p.Random, noise); err != nil {
		return nil, fmt.Errorf("simulated PUF: %w", err)
	}
	for bit := range 8 * PUFBytes {
		if binary.BigEndian.Uint16(noise[2*bit:]) < p.Noise {
			out[bit/8] ^= 1 << (bit % 8)
		}
	}
	return out, nil
}

// pufSource is the FingerprintSource of a PUF.
type pufSource struct{ PUF }

func (pufSource) Name() string { return protocol.HwPUF }

func (s pufSource) Components(context.Context) ([]protocol.Component, error) {
	r, err := s.Response()
	if err != nil {
		return nil, err
	}
	if len(r) != PUFBytes {
		return nil, fmt.Errorf("a response of %d bytes, not %d", len(r), PUFBytes)
	}
	return []protocol.Component{{Class: protocol.HwPUF, Slot: protocol.SlotResponse, Value: hex.EncodeToString(r)}}, nil
}
