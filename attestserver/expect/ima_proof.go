package expect

import (
	"encoding/binary"
	"encoding/hex"

	"portcullis/attestserver/protocol"
)

// At tier T1 the list that op ima judges is the one whose digest the chip has signed in
// register 10. The ops tell it independently and at different moments, so each keeps
// the head of the same chain over the entries that it has seen, and whichever of the two
// passes the other's place compares the heads there: equal heads are equal lists up to
// there. The list only grows, so nothing is read twice.
//
// Two things are left, which comparing does not show. A list that op ima is told short
// of what was proven before is found at once (Ima.proven); one that is told longer than any that
// exists, so that the chip's never gets there, at the next quote but one (tpmNote.Owed).

// imaChain is a place in the kernel's list; the zero value is before its first entry.
type imaChain struct {
	Count uint64   // entries
	Head  [32]byte // of the chain over them
}

func (c imaChain) head() [32]byte {
	if c.Count == 0 {
		return protocol.ImaStart
	}
	return c.Head
}

func (c imaChain) text() string { h := c.head(); return hex.EncodeToString(h[:]) }

func (c imaChain) next(m protocol.Measurement) imaChain {
	return imaChain{c.Count + 1, protocol.ImaNext(c.head(), m)}
}

// write notes where op ima is.
func (c imaChain) write(st *protocol.ImageState) {
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	st.Notes[protocol.OpIma] = append(binary.BigEndian.AppendUint64(nil, c.Count), c.Head[:]...)
}

// readImaNote returns where op ima is in this session.
func readImaNote(st *protocol.ImageState) (c imaChain) {
	if n := st.Notes[protocol.OpIma]; len(n) == 8+32 {
		c.Count, c.Head = binary.BigEndian.Uint64(n), [32]byte(n[8:])
	}
	return c
}

// proven is how far the chip has proven the list, and must be asked before the entries of
// an answer are judged. Without a chip it is at none.
type proven struct {
	at   imaChain // where op tpm is
	upTo uint64   // so many entries are certain to exist
}

func readProven(st *protocol.ImageState) proven {
	s := readTpmNote(st)
	return proven{s.Chain, s.Proven}
}

// contradicts tells whether c is where op tpm is, with another list.
func (p proven) contradicts(c imaChain) bool {
	return c.Count > 0 && c.Count == p.at.Count && c != p.at
}
