package slab

import (
	"strings"
	"testing"
)

// Whatever their sizes, also at the ends of pieces, texts are what was put in, and stay where they are.
func TestTextsStay(t *testing.T) {
	var all Text
	sizes := []int{0, 1, 7, piece - 8, 0, 1, piece, piece + 1, 3, 5 * piece, piece - 3, 3, long, long + 1, long, 2, long, long, long + 1, 1}
	var refs []Ref
	var want []string
	total := 0
	for i, n := range sizes {
		w := strings.Repeat(string(rune('a'+i)), n)
		refs, want, total = append(refs, all.Add(w[:n/3], "", w[n/3:])), append(want, w), total+n
		for j, r := range refs {
			if got := string(all.At(r, 0, len(want[j]))); got != want[j] {
				t.Fatalf("after %d: text %d has %d bytes %.5q", i, j, len(got), got)
			}
		}
	}
	last := len(refs) - 2
	if got := all.At(refs[last], 1, 2); string(got) != want[last][1:3] || cap(got) != 2 {
		t.Errorf("a part: %q, room for %d", got, cap(got))
	}
	if all.Bytes() != int64(total) {
		t.Errorf("%d bytes, not %d", all.Bytes(), total)
	}
}

// Whatever their sizes, texts take at most a third more memory than they have, and a piece.
func TestTextsTakeLittleMore(t *testing.T) {
	for _, n := range []int{1, 100, long - 1, long, long + 1, piece/2 + 1, piece - 1, piece, piece + 1} {
		var all Text
		took := 0
		for range 8*piece/n + 1 {
			all.Add(strings.Repeat("a", n))
			all.Add("b")
		}
		for _, p := range all.pieces {
			took += cap(p)
		}
		if int64(took) > all.Bytes()*4/3+piece {
			t.Errorf("texts of %d and of 1 byte: %d bytes take %d", n, all.Bytes(), took)
		}
	}
}
