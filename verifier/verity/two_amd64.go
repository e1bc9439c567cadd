package verity

import (
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

// A processor that has instructions for SHA-256 waits in one digest for one of them after the
// other; two digests beside each other take little longer than one.

// hasTwo is whether there are these instructions.
var hasTwo = func() bool {
	most, _ := cpuid(0)
	if most < 7 || !cpu.X86.HasSSSE3 {
		return false
	}
	_, features := cpuid(7)
	return features&(1<<29) != 0 // SHA
}()

// Assembly, in two_amd64.s.
func cpuid(leaf uint32) (eax, ebx uint32)

// two takes as many blocks of 64 bytes from p into the first state, and from q into the other.
// A state is in the order of the instructions: f, e, b, a, h, g, d, c.
//
//go:noescape
func two(state *[2][8]uint32, p, q *byte, blocks int)

// begun is where SHA-256 begins, and ended what it puts behind BlockSize bytes (FIPS 180-4).
var (
	begun = [8]uint32{0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667, 0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372}
	ended = [64]byte{0: 0x80, 62: BlockSize * 8 >> 8 & 0xff, 63: BlockSize * 8 & 0xff}
	order = [8]int{3, 2, 7, 6, 1, 0, 5, 4} // of a to h in a state
)

// pair hashes two blocks.
func pair(b *[2 * BlockSize]byte) (out [2]Sum) {
	state := [2][8]uint32{begun, begun}
	two(&state, &b[0], &b[BlockSize], BlockSize/64)
	two(&state, &ended[0], &ended[0], 1)
	for n := range out {
		for i, at := range order {
			binary.BigEndian.PutUint32(out[n][4*i:], state[n][at])
		}
	}
	return out
}
