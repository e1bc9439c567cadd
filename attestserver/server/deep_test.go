package server

import (
	"sync"
	"sync/atomic"
	"testing"
)

// Whatever waits for another one at work does not keep it from beginning.
func TestDeepHasAPlaceForEverybody(t *testing.T) {
	const many = 4 * maxResting
	var all sync.WaitGroup
	all.Add(many)
	var ran atomic.Int64
	var group sync.WaitGroup
	for range many {
		group.Go(func() {
			deep.do(func() {
				all.Done()
				all.Wait() // for all others, at the same time
				deep.do(func() { ran.Add(1) })
			})
		})
	}
	group.Wait()
	if ran.Load() != many {
		t.Errorf("%d have run", ran.Load())
	}
	if n := len(deep.rest); n == 0 || n > maxResting {
		t.Errorf("%d wait", n)
	}
}

func BenchmarkDeep(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		deep.do(func() {})
	}
}
