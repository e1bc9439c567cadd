//go:build !amd64

package verity

// hasTwo is whether two blocks are hashed beside each other: on other processors crypto/sha256
// hashes one after the other.
const hasTwo = false

func pair(*[2 * BlockSize]byte) [2]Sum { panic("verity: not on this processor") }
