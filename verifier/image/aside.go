package image

import (
	"crypto/sha256"
	"hash"
)

// asidePiece is how much is handed over at once, and how small a stream is hashed in place.
const asidePiece = 256 << 10

// aside is a SHA-256 that is computed beside whoever writes to it: of a layer the same
// bytes are hashed for its digest and for the list of its files, which is all the work there
// is where nothing has to be decompressed. Not for use by several at once.
type aside struct {
	digest hash.Hash // of the other side once full is there
	piece  []byte
	full   chan []byte
	empty  chan []byte
	done   chan struct{}
}

func newAside() *aside { return &aside{digest: sha256.New()} }

// Write takes a copy of b. It waits only while two pieces are ahead of the hash.
func (a *aside) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if a.piece == nil {
			a.piece = a.room()
		}
		taken := copy(a.piece[len(a.piece):cap(a.piece)], b)
		a.piece, b = a.piece[:len(a.piece)+taken], b[taken:]
		if len(a.piece) == cap(a.piece) {
			a.hand()
		}
	}
	return n, nil
}

// room is an empty piece.
func (a *aside) room() []byte {
	if a.full == nil {
		return make([]byte, 0, asidePiece)
	}
	return (<-a.empty)[:0]
}

// hand gives the full piece to the other side, which begins with the first one.
func (a *aside) hand() {
	if a.full == nil {
		a.full, a.empty, a.done = make(chan []byte, 2), make(chan []byte, 3), make(chan struct{})
		for range 2 {
			a.empty <- make([]byte, 0, asidePiece)
		}
		go func() {
			defer close(a.done)
			for p := range a.full {
				a.digest.Write(p)
				a.empty <- p
			}
		}()
	}
	a.full <- a.piece
	a.piece = nil
}

// end returns when nothing is computed any more. Nothing may be written after it; it may be
// called again.
func (a *aside) end() {
	if a.full != nil {
		close(a.full)
		<-a.done
		a.full = nil
	}
	a.digest.Write(a.piece)
	a.piece = nil
}

// sum ends it and returns the digest in its usual form.
func (a *aside) sum() string {
	a.end()
	return sum(a.digest)
}
