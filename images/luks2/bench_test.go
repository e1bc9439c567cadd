package luks2

import "testing"

func BenchmarkPayload(b *testing.B) {
	const n = 8 << 20
	d, key := make(memory, smallOffset+n), randomKey(b)
	h := must[*Header](b)(Format(d, smallOffset+n, Options{PayloadOffset: smallOffset}, key))
	p := must[*Payload](b)(h.Payload(d, key))
	buf := make([]byte, n)
	b.Run("read", func(b *testing.B) {
		b.SetBytes(n)
		for b.Loop() {
			must[int](b)(p.ReadAt(buf, 0))
		}
	})
	b.Run("write", func(b *testing.B) {
		b.SetBytes(n)
		for b.Loop() {
			must[int](b)(p.WriteAt(buf, 0))
		}
	})
}

func BenchmarkUnlock(b *testing.B) {
	d, h, key := small(b)
	human := must[int](b)(h.AddSlot(d, key, []byte("human"), ForPeople()))
	b.Run("chip", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := h.Unlock(d, chipPass, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("people", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := h.Unlock(d, []byte("human"), human); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	d, _, _ := small(b)
	for b.Loop() {
		if _, _, err := Read(d, smallSize); err != nil {
			b.Fatal(err)
		}
	}
}
