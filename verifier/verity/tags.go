package verity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/cpu"
)

// Tags are by what a process knows content again whose digest it has found itself: a tag
// of each segment, by GMAC (AES-256-GCM over additional data alone, NIST SP 800-38D), which reads four
// times as much in the same time as SHA-256 does. Nobody else could do anything with
// them: whoever has the key makes tags of whatever he likes. So they are never written down, and the
// key is born and ends with the process.
//
// A digest has to hold against everybody, for ever, and is asked for by people. A tag has to hold
// against somebody who writes to files that this process reads, knows what is in them, and sees neither key nor
// tags; who can read the memory of this process does not need to forge any. That is what a
// Wegman-Carter code is for: the tag is a polynomial of the segment at a secret point, in a field of 2^128
// elements, plus a mask that is used once. Other bytes have the same tag for at most as many points as the polynomial
// has degrees, 2^15+1 for the 2^15 blocks of a segment and their length: with a chance of
// less than 2^-112 for each attempt, whatever the attacker can compute. AES as the source of the masks adds nothing to
// speak of below 2^60 tags (Bernstein, Eurocrypt 2005).
//
// All of it rests on no mask being used for two segments: whoever saw the tags of both would learn the point.
// So each tag that is made takes the next number, and tags of what turned out to be other content
// are thrown away with theirs (guard/tags.go). Comparing uses the number of the tag that is there, once for each
// attempt, and gives no tag out: an attacker learns that his bytes were taken for others, which he knew.
type Tags []tag

type tag struct {
	number uint64
	sum    [16]byte
}

// Tagger makes and compares tags under the key that it was born with.
type Tagger struct {
	aead cipher.AEAD
	used atomic.Uint64 // the last number that a tag was made with
}

// QuickTagger is NewTagger, and nil where the processor has no instructions for AES and for multiplying without
// carries, as that of a Raspberry Pi 4: there a digest is the quicker one.
func QuickTagger() *Tagger {
	if !quick() {
		return nil
	}
	return NewTagger()
}

func quick() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSSE3 && cpu.X86.HasSSE41
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	}
	return false
}

// NewTagger draws a key.
func NewTagger() *Tagger {
	var key [32]byte
	rand.Read(key[:]) // never fails
	block, err := aes.NewCipher(key[:])
	clear(key[:])
	if err != nil {
		panic(err) // of another length of key
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // of another size of block
	}
	return &Tagger{aead: aead}
}

// nonce is 96 bits, of which 2^64 tags never need more than the lower ones.
func nonce(number uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), number)
}

// tag makes the tag of a segment.
func (t *Tagger) tag(b []byte) (out tag) {
	out.number = t.used.Add(1)
	t.aead.Seal(out.sum[:0], nonce(out.number), nil, b)
	return out
}

// Of is what the function Of is, with the tags of the same bytes: each segment is read once.
func (t *Tagger) Of(r io.ReaderAt, size int64, workers int) (Sum, Tags, error) {
	tags := make(Tags, segments(size))
	sum, err := of(r, size, workers, func(i int64, b []byte) { tags[i] = t.tag(b) })
	if err != nil {
		return Sum{}, nil, err
	}
	return sum, tags, nil
}

var errOther = errors.New("verity: not what the tag is of")

// Same tells whether the size bytes that r has are those that tags were made of; the
// tags are this Tagger's. It may end before all was read.
func (t *Tagger) Same(r io.ReaderAt, size int64, tags Tags, workers int) (bool, error) {
	if len(tags) == 0 || int64(len(tags)) != segments(size) {
		return false, nil
	}
	err := walk(r, size, workers, func(i int64, b []byte) error {
		// A message of no bytes, of which there is nothing but the tag; compared in constant time.
		if _, err := t.aead.Open(nil, nonce(tags[i].number), tags[i].sum[:], b); err != nil {
			return errOther
		}
		return nil
	})
	if errors.Is(err, errOther) {
		return false, nil
	}
	return err == nil, err
}
