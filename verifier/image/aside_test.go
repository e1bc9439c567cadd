package image

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"portcullis/verifier/approval"
)

// TestAside: whatever the pieces in which it comes, and who reuses their memory, the digest
// is that of the whole, also when it is asked for twice.
func TestAside(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, asidePiece - 1, asidePiece, asidePiece + 1, 5*asidePiece + 7, 20 * asidePiece} {
		all := make([]byte, size)
		for i := range all {
			all[i] = byte(random.Uint32())
		}
		a, rest, buffer := newAside(), all, make([]byte, 3*asidePiece)
		for len(rest) > 0 {
			n := copy(buffer[:1+random.IntN(len(buffer))], rest)
			if got, err := a.Write(buffer[:n]); got != n || err != nil {
				t.Fatal(got, err)
			}
			clear(buffer)
			rest = rest[n:]
		}
		for range 2 {
			if got := a.sum(); got != approval.Digest(all) {
				t.Errorf("%d bytes: %s", size, got)
			}
		}
	}
}

// TestAsideEnds: one that is given up in the middle leaves nothing running.
func TestAsideEnds(t *testing.T) {
	for _, size := range []int{0, 100, asidePiece, 9*asidePiece + 1} {
		synctest.Test(t, func(t *testing.T) {
			a := newAside()
			a.Write(make([]byte, size))
			a.end()
			a.end()
		})
	}
}

func BenchmarkAside(b *testing.B) {
	chunk := bytes.Repeat([]byte("code"), 8<<10)
	b.Run("aside", func(b *testing.B) {
		a := newAside()
		for b.SetBytes(int64(len(chunk))); b.Loop(); {
			a.Write(chunk)
		}
		a.end()
	})
	b.Run("in place", func(b *testing.B) {
		h := sha256.New()
		for b.SetBytes(int64(len(chunk))); b.Loop(); {
			h.Write(chunk)
		}
	})
}
