package tpm2

import "testing"

func BenchmarkSeal(b *testing.B) {
	w := newWorld(b)
	w.sealed(b)
	c := w.start(b, w.config(b, 5))
	for b.Loop() {
		if _, err := c.Seal(b.Context(), testLabel, make([]byte, 32)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	w := newWorld(b)
	_, blob := w.sealed(b)
	c := w.start(b, w.config(b, 5))
	for b.Loop() {
		if _, err := c.Unseal(b.Context(), testLabel, blob); err != nil {
			b.Fatal(err)
		}
	}
	bus, c := w.bus(b, w.config(b, 5))
	if _, err := c.Unseal(b.Context(), testLabel, blob); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(bus.seen)/2), "commands/op")
}

func BenchmarkQuote(b *testing.B) {
	w := newWorld(b)
	c, _ := enrolled(b, w.chip.Path, EKECC)
	for b.Loop() {
		if _, err := c.Quote(b.Context(), make([]byte, 32), []int{8, 9, 11}); err != nil {
			b.Fatal(err)
		}
	}
}
