package protocol

import (
	"bytes"
	"testing"
)

// Freshness as a property: every part of what is folded decides the result, the
// order of those who ask does not.
func TestEveryBitOfEveryNonceIsInTheFold(t *testing.T) {
	own := [32]byte{1}
	others := [][]byte{bytes.Repeat([]byte{2}, 16), bytes.Repeat([]byte{3}, 64), []byte("0123456789abcdef")}
	want := FoldNonces(own, others)
	if FoldNonces(own, [][]byte{others[2], others[0], others[1]}) != want {
		t.Error("the order matters")
	}
	for i := range own {
		for bit := range 8 {
			changed := own
			changed[i] ^= 1 << bit
			if FoldNonces(changed, others) == want {
				t.Fatalf("own byte %d bit %d is not in it", i, bit)
			}
		}
	}
	for n := range others {
		for i := range others[n] {
			for bit := range 8 {
				changed := [][]byte{bytes.Clone(others[0]), bytes.Clone(others[1]), bytes.Clone(others[2])}
				changed[n][i] ^= 1 << bit
				if FoldNonces(own, changed) == want {
					t.Fatalf("nonce %d byte %d bit %d is not in it", n, i, bit)
				}
			}
		}
	}
	if FoldNonces(own, others[:2]) == want || FoldNonces(own, append(others, others[0])) == want || FoldNonces(own, nil) == want {
		t.Error("the number of nonces is not in it")
	}
	// The same bytes cut in another place.
	if FoldNonces(own, [][]byte{[]byte("aaaabbbb"), []byte("cccc")}) == FoldNonces(own, [][]byte{[]byte("aaaa"), []byte("bbbbcccc")}) {
		t.Error("lengths are not in it")
	}
}
