package expect

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestDifferenceMakesThePieceAgain(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 7, 8, 9, 63, 64, 65, 4096, 16384, 16384 - 3} {
		for _, changed := range []int{0, 1, 5, 1000} {
			signed := make([]byte, size)
			for i := range signed {
				signed[i] = byte(r.Uint32())
			}
			piece := bytes.Clone(signed)
			for range min(changed, size) {
				piece[r.IntN(size)] ^= byte(1 + r.IntN(255))
			}
			note := appendDifference([]byte("before"), signed, piece)
			if most := len("before") + (size+63)/64 + changed*differenceWord; len(note) > most {
				t.Errorf("%d bytes, at most %d changed: %d bytes, at most %d", size, changed, len(note), most)
			}
			again := bytes.Clone(signed)
			applyDifference(again, string(note[len("before"):]))
			if !bytes.Equal(again, piece) {
				t.Errorf("%d bytes, %d changed: another piece", size, changed)
			}
		}
	}
}
