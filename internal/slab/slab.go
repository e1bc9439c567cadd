// Package slab keeps many short texts behind each other, without a pointer or a header for each: a
// string of its own takes 16 bytes more, the rounding up of its size, and the time of the collector.
package slab

// piece is how large the pieces are that texts lie in, bytes. None is ever copied into a larger one.
const piece = 64 << 10

// long is from how many bytes on a text has a piece of its own, so that no more than a quarter of the others stays empty.
const long = piece / 4

// Text is texts. The zero value has none.
type Text struct {
	pieces [][]byte
	filled int // the piece in which there may be room, and one more; 0 = none
	bytes  int64
}

// Ref is where a text begins.
type Ref struct{ piece, at uint32 }

// Add puts the parts behind each other, as one text.
func (t *Text) Add(parts ...string) Ref {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	i := t.filled - 1
	if n > long {
		i = len(t.pieces)
		t.pieces = append(t.pieces, make([]byte, 0, n))
	} else if i < 0 || cap(t.pieces[i])-len(t.pieces[i]) < n {
		i = len(t.pieces)
		t.pieces = append(t.pieces, make([]byte, 0, piece))
		t.filled = len(t.pieces)
	}
	r := Ref{uint32(i), uint32(len(t.pieces[i]))}
	for _, p := range parts {
		t.pieces[i] = append(t.pieces[i], p...)
	}
	t.bytes += int64(n)
	return r
}

// At is the n bytes of a text behind its first skip bytes. They are not to be changed.
func (t *Text) At(r Ref, skip, n int) []byte {
	begin := int(r.at) + skip
	return t.pieces[r.piece][begin : begin+n : begin+n]
}

// Bytes is how much there is of all texts.
func (t *Text) Bytes() int64 { return t.bytes }
