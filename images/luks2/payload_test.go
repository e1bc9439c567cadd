package luks2

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// Reads and writes at any offset are those of a plain slice.
func TestPayloadIsASlice(t *testing.T) {
	for _, sector := range []int{512, 1024, 2048, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			const n = 3*maxPiece + 64<<10
			d, key := make(memory, smallOffset+n), randomKey(t)
			h := must[*Header](t)(Format(d, smallOffset+n, Options{PayloadOffset: smallOffset, SectorSize: sector}, key))
			p := must[*Payload](t)(h.Payload(d, key))
			if p.Size() != n {
				t.Fatalf("size %d", p.Size())
			}
			want := make([]byte, n)
			must[int](t)(p.WriteAt(want, 0))
			random := rand.New(rand.NewPCG(3, 4))
			for range 300 {
				off := near(random, n)
				b := make([]byte, random.IntN(min(n-off, 3*sector)+1))
				for i := range b {
					b[i] = byte(random.Uint32())
				}
				must[int](t)(p.WriteAt(b, int64(off)))
				copy(want[off:], b)
				off = near(random, n)
				b = make([]byte, random.IntN(min(n-off, 3*sector)+1))
				must[int](t)(p.ReadAt(b, int64(off)))
				if !bytes.Equal(b, want[off:off+len(b)]) {
					t.Fatalf("%d bytes at %d differ", len(b), off)
				}
			}
			// More than one piece, not aligned at either end.
			slices.Reverse(want[100 : n-7])
			must[int](t)(p.WriteAt(want[100:n-7], 100))
			got := make([]byte, n)
			must[int](t)(p.ReadAt(got, 0))
			if !bytes.Equal(got, want) {
				t.Error("a write of several pieces reads differently")
			}
			if _, err := io.ReadFull(io.NewSectionReader(p, 0, n), want); err != nil {
				t.Error(err)
			}
		})
	}
}

// near is an offset that is often close to where a piece ends.
func near(random *rand.Rand, n int) int {
	off := random.IntN(n)
	if random.IntN(2) == 0 {
		off = off/maxPiece*maxPiece - 5000 + random.IntN(10000)
	}
	return max(0, min(off, n-1))
}

func TestPayloadEnds(t *testing.T) {
	d, h, key := small(t)
	p := must[*Payload](t)(h.Payload(d, key))
	b := make([]byte, 10)
	if n, err := p.ReadAt(b, p.Size()-4); n != 4 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := p.ReadAt(b, p.Size()); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := p.ReadAt(b, -1); ReasonOf(err) != ReasonUsage {
		t.Error(err)
	}
	for _, off := range []int64{-1, p.Size() - 9, p.Size(), 1 << 62} {
		if _, err := p.WriteAt(b, off); ReasonOf(err) != ReasonSize {
			t.Errorf("at %d: %v", off, err)
		}
	}
	if _, err := h.Payload(d, randomKey(t)); ReasonOf(err) != ReasonPassphrase {
		t.Errorf("another volume's key: %v", err)
	}
}
