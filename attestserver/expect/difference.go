package expect

import "bytes"

// What a kernel sealed at its start is half a MiB of pieces, of which most words are the
// signed kernel's, and most others the same with every PC that runs it (its table of jump
// labels, which it sorts): a rack of 200 PCs would take 100 MiB of attestd's memory. So a
// piece is kept as its difference from the signed one, and equal differences once
// (package unique): a bit for each word, lowest first, then the words that differ, in
// order. A word is eight bytes, the last one of a piece may be less.
const differenceWord = 8

// appendDifference appends what piece has other than signed, which is as long.
func appendDifference(to, signed, piece []byte) []byte {
	bits := len(to)
	words := (len(piece) + differenceWord - 1) / differenceWord
	to = append(to, make([]byte, (words+7)/8)...)
	for w := range words {
		at, end := w*differenceWord, min((w+1)*differenceWord, len(piece))
		if !bytes.Equal(piece[at:end], signed[at:end]) {
			to[bits+w/8] |= 1 << (w % 8)
			to = append(to, piece[at:end]...)
		}
	}
	return to
}

// applyDifference makes the piece of the signed one, of what appendDifference appended.
func applyDifference(signed []byte, from string) {
	words := (len(signed) + differenceWord - 1) / differenceWord
	bits := from[:(words+7)/8]
	from = from[len(bits):]
	for w := range words {
		if bits[w/8]&(1<<(w%8)) != 0 {
			n := copy(signed[w*differenceWord:min((w+1)*differenceWord, len(signed))], from)
			from = from[n:]
		}
	}
}
