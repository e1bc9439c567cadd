package expect

import (
	"encoding/binary"
	"io"

	"portcullis/attestserver/protocol"
)

// Block is the twin of probe.Block.
type Block struct{ user }

// blocksAsked is how many blocks one challenge reads.
const blocksAsked = 64

// Name implements protocol.Expectation.
func (*Block) Name() string { return protocol.OpBlock }

// Params implements protocol.Expectation.
func (e *Block) Params(r io.Reader, _ *protocol.ImageState) ([]byte, error) {
	total, err := e.blocks()
	if err != nil {
		return nil, err
	}
	b, err := draw(r, 8*blocksAsked)
	if err != nil {
		return nil, err
	}
	var p protocol.BlockParams
	for ; len(b) > 0; b = b[8:] {
		p.Blocks = append(p.Blocks, binary.BigEndian.Uint64(b)%total)
	}
	return protocol.EncodeOp(p)
}

func (e *Block) blocks() (uint64, error) {
	st, err := e.root.Stat()
	if err != nil {
		return 0, err
	}
	return max(uint64(st.Size())/protocol.BlockSize, 1), nil
}

// Judge implements protocol.Expectation.
func (e *Block) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var p protocol.BlockParams
	if err := protocol.DecodeOp(in.Params, protocol.MaxParams, &p); err != nil {
		j.unjudged(err)
		return j.list
	}
	h := in.Key.NewDigest(e.Name(), in.Params)
	buf := make([]byte, protocol.BlockSize)
	for _, b := range p.Blocks {
		if _, err := e.root.ReadAt(buf, int64(b)*protocol.BlockSize); err != nil {
			j.unjudged(err)
			return j.list
		}
		h.Write(buf)
	}
	h.Write(in.Output.Data)
	if !protocol.SameDigest(in.Output.Digest, protocol.Sum(h)) {
		j.fatal(ReasonBlock, "%d random blocks of the root device are not those of the image", len(p.Blocks))
		return j.list
	}
	var d protocol.BlockData
	if j.decode(in, &d, protocol.MaxData) {
		e.verity(j, &d.Verity)
	}
	return j.list
}

func (e *Block) verity(j *judge, v *protocol.Verity) {
	want := e.Manifest.Verity
	switch {
	case v.Targets != 1 || v.Target != "verity" || v.Algorithm != "sha256" || !v.ReadOnly:
		j.fatal(ReasonVerity, "%s has %d targets of kind %q with %q, read-only is %t", v.Device, v.Targets, v.Target, v.Algorithm, v.ReadOnly)
	case v.RootHash != want.RootHash || v.Salt != want.Salt || v.DataBlocks != want.DataBlocks || v.HashStart != want.HashStart:
		j.fatal(ReasonVerity, "%s has root hash %.16s…, %d data blocks and its tree at %d", v.Device, v.RootHash, v.DataBlocks, v.HashStart)
	case v.Options != "":
		// One has the kernel show each block only once to the tree, another has it hand out what is wrong.
		j.fatal(ReasonVerity, "%s has the options %.100q, which hpc-init does not give", v.Device, v.Options)
	case v.DataDev != v.HashDev || v.DataDev != v.Below:
		j.fatal(ReasonVerity, "%s lies on %s and %s, the blocks were read from %s", v.Device, v.DataDev, v.HashDev, v.Below)
	case v.Status != "V":
		j.fatal(ReasonVerity, "%s has met corruption: status %q", v.Device, v.Status)
	}
}
