package expect

import (
	"encoding/binary"
	"encoding/hex"
	"io"

	"portcullis/attestserver/protocol"
)

// Noise is the twin of probe.Noise: it draws a seed for each boot session and
// computes the pieces that it asks for.
type Noise struct {
	user
	size int64 // bytes
}

// What one challenge reads of the noise.
const (
	noiseSlices = 8
	noiseSlice  = 64 << 10 // bytes
)

// Name implements protocol.Expectation.
func (*Noise) Name() string { return protocol.OpNoise }

// Params implements protocol.Expectation.
func (e *Noise) Params(r io.Reader, st *protocol.ImageState) ([]byte, error) {
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	if st.Notes[e.Name()] == nil {
		seed, err := draw(r, 32)
		if err != nil {
			return nil, err
		}
		st.Notes[e.Name()] = seed
	}
	p := protocol.NoiseParams{Seed: hex.EncodeToString(st.Notes[e.Name()]), Size: e.size}
	length := min(noiseSlice, e.size)
	b, err := draw(r, 8*noiseSlices)
	if err != nil {
		return nil, err
	}
	for ; len(b) > 0; b = b[8:] {
		p.Slices = append(p.Slices, protocol.Slice{Offset: int64(binary.BigEndian.Uint64(b) % uint64(e.size-length+1)), Length: length})
	}
	return protocol.EncodeOp(p)
}

// Judge implements protocol.Expectation.
func (e *Noise) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var p protocol.NoiseParams
	if err := protocol.DecodeOp(in.Params, protocol.MaxParams, &p); err != nil {
		j.unjudged(err)
		return j.list
	}
	var d protocol.NoiseData
	if !j.decode(in, &d, protocol.MaxData) {
		return j.list
	}
	h := in.Key.NewDigest(e.Name(), in.Params)
	if d.Size != 0 {
		raw, _ := hex.DecodeString(p.Seed) // Check has seen it
		buf := make([]byte, protocol.MaxNoiseSlice)
		for _, s := range p.Slices {
			protocol.Noise([32]byte(raw), s.Offset, buf[:s.Length])
			h.Write(buf[:s.Length])
		}
	}
	h.Write(in.Output.Data)
	switch {
	case !protocol.SameDigest(in.Output.Digest, protocol.Sum(h)):
		j.fatal(ReasonNoise, "%d random pieces of the noise are not resident", len(p.Slices))
	case d.Size == 0:
		j.add(protocol.Info, ReasonNoNoise, "not enough free memory for %d MiB of noise", p.Size>>20)
	case d.Size != p.Size:
		j.fatal(ReasonNoise, "%d bytes of noise, asked for %d", d.Size, p.Size)
	}
	return j.list
}
