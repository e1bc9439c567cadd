package record

import (
	"slices"
	"sync"
	"testing"
	"time"

	"portcullis/verifier/approval"
)

// A permission is on the disk when Decide returns: alone, and with 16 callers who
// share what the disk does. p99 is of the calls of the run.
func BenchmarkDecide(b *testing.B) {
	for name, callers := range map[string]int{"callers=1": 1, "callers=16": 16} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			a := pxed(1, "1")
			r.approve(a)
			var mu sync.Mutex
			var took []time.Duration
			b.ResetTimer()
			var all sync.WaitGroup
			for w := range callers {
				all.Go(func() {
					for i := w; i < b.N; i += callers {
						begin := time.Now()
						if _, err := r.Decide(start(a)); err != nil {
							b.Error(err)
							return
						}
						mu.Lock()
						took = append(took, time.Since(begin))
						mu.Unlock()
					}
				})
			}
			all.Wait()
			slices.Sort(took)
			if len(took) > 0 {
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			}
		})
	}
}

// At its start verifierd reads and checks the whole log.
func BenchmarkOpen(b *testing.B) {
	r := newRig(b)
	a := pxed(1, "1")
	r.approve(a)
	profile := a.Profile
	for range 20000 {
		r.mu.Lock()
		_, err := r.append(Entry{Kind: KindPermission, Permission: &Permission{Action: approval.Start, Approval: r.state.standing[0].Digest, Image: a.Image, Purpose: a.Purpose, Profile: &profile, Caller: "uid 0"}})
		r.mu.Unlock()
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		rec, err := Open(r.options)
		if err != nil {
			b.Fatal(err)
		}
		rec.Close()
	}
	b.ReportMetric(20000, "entries")
}
