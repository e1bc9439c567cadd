package verity

import (
	"crypto/sha256"
	"runtime"
	"testing"
)

// Two blocks beside each other have the digests that each has alone.
func FuzzPairIsTwice(f *testing.F) {
	f.Add(random(2*BlockSize, 5))
	f.Add(make([]byte, 2*BlockSize))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, some []byte) {
		if !hasTwo {
			return
		}
		var b [2 * BlockSize]byte
		for n := 0; n < len(b) && len(some) > 0; {
			n += copy(b[n:], some)
		}
		want := [2]Sum{sha256.Sum256(b[:BlockSize]), sha256.Sum256(b[BlockSize:])}
		if got := pair(&b); got != want {
			t.Errorf("%x, not %x", got, want)
		}
	})
}

// Each of many blocks, at every place in memory.
func TestPairIsTwice(t *testing.T) {
	if !hasTwo {
		t.Logf("no instructions for it on this %s", runtime.GOARCH)
		return
	}
	data := random(64*BlockSize, 6)
	for at := 0; at+2*BlockSize <= len(data); at += 1021 {
		b := (*[2 * BlockSize]byte)(data[at:])
		want := [2]Sum{sha256.Sum256(b[:BlockSize]), sha256.Sum256(b[BlockSize:])}
		if got := pair(b); got != want {
			t.Fatalf("at %d: %x, not %x", at, got, want)
		}
	}
}

func BenchmarkPair(b *testing.B) {
	data := (*[2 * BlockSize]byte)(random(2*BlockSize, 7))
	b.Run("one-after-the-other", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			sha256.Sum256(data[:BlockSize])
			sha256.Sum256(data[BlockSize:])
		}
	})
	if !hasTwo {
		return
	}
	b.Run("beside-each-other", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			pair(data)
		}
	})
}
