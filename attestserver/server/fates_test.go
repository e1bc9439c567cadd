package server

import (
	"encoding/binary"
	"testing"
)

// The last challenges are remembered and no other, each with what became of it last.
func TestFates(t *testing.T) {
	id := func(n int) (out [16]byte) {
		binary.BigEndian.PutUint64(out[:], uint64(n))
		return out
	}
	var f fates
	const all = 3*memory + 5
	for n := range all {
		if got := f.of(id(n)); got != 0 {
			t.Fatalf("challenge %d: %d before it was asked", n, got)
		}
		f.set(id(n), expired)
		if n%2 == 0 {
			f.set(id(n), answered)
		}
		if got, want := f.of(id(n)), []fate{answered, expired}[n%2]; got != want {
			t.Fatalf("challenge %d: %d, want %d", n, got, want)
		}
		for back := 1; back <= n; back++ {
			want := []fate{answered, expired}[(n-back)%2]
			if back >= memory {
				want = 0
			}
			if got := f.of(id(n - back)); got != want {
				t.Fatalf("challenge %d after %d more: %d, want %d", n-back, back, got, want)
			}
		}
	}
	if len(f.ids) != memory || len(f.is) != memory {
		t.Errorf("%d and %d are kept", len(f.ids), len(f.is))
	}
}
