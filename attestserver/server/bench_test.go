package server_test

import (
	"runtime"
	"syscall"
	"testing"
	"time"
)

// BenchmarkChallengeRound is what one challenge of eight ops costs attestd and
// agent together, without what the probes read: composing, TLS, signature,
// keyed digests, judgement, verdict, events. The gaps are set to nothing.
func BenchmarkChallengeRound(b *testing.B) {
	challengeRound(b, "boot", "procs", "hw", "ktext", "net", "block", "pmem", "modules")
}

// BenchmarkOneOpRound is the same with a single op: what does not grow with them.
func BenchmarkOneOpRound(b *testing.B) { challengeRound(b, "net") }

func challengeRound(b *testing.B, ops ...string) {
	l := newLab(b)
	l.names = ops
	l.mean, l.min = 2, 1
	l.pxed.open(sid)
	l.start()
	p := l.puppet(sid, newKey(b))
	p.send(p.evidence(p.challenge()))
	l.awaitState(0, "trusted")
	cpu := cpuTime(b)
	for b.Loop() {
		p.send(p.evidence(p.challenge()))
	}
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MiB")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
