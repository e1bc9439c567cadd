package translog

import (
	"bytes"
	"runtime"
	"strconv"
	"testing"
)

// BenchmarkAppendDurable is what one caller waits for who needs its entry on the disk.
func BenchmarkAppendDurable(b *testing.B) {
	l := open(b, b.TempDir(), newKeys(b, "test.log"))
	e := make([]byte, 600)
	for b.Loop() {
		if _, err := l.Append(e); err != nil {
			b.Fatal(err)
		}
		if err := l.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppendAndPublish appends without waiting and signs every 256 entries.
func BenchmarkAppendAndPublish(b *testing.B) {
	l := open(b, b.TempDir(), newKeys(b, "test.log"))
	e := make([]byte, 600)
	for i := 0; b.Loop(); i++ {
		if _, err := l.Append(e); err != nil {
			b.Fatal(err)
		}
		if i%256 == 255 {
			if err := l.Publish(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkAppendDurableTogether is an entry that waits for the disk, beside as many
// others as there would be PCs.
func BenchmarkAppendDurableTogether(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(strconv.Itoa(writers), func(b *testing.B) {
			l := open(b, b.TempDir(), newKeys(b, "test.log"))
			b.SetParallelism(max(1, writers/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(p *testing.PB) {
				e := bytes.Repeat([]byte("x"), 400)
				for p.Next() {
					if _, err := l.Append(e); err != nil {
						b.Error(err)
					}
					if err := l.Sync(); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(l.Syncs())/float64(b.N), "fsyncs/op")
		})
	}
}
