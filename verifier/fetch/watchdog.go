package fetch

import (
	"context"
	"sync"
	"time"
)

// watchdog ends an attempt to which too few bytes come: a server that sends one byte
// a minute would hold the quarantine for ever.
type watchdog struct {
	mu    sync.Mutex
	bytes int64
	end   chan struct{}
	gone  sync.WaitGroup
}

func newWatchdog(o Options, cancel context.CancelCauseFunc) *watchdog {
	d := &watchdog{end: make(chan struct{})}
	d.gone.Go(func() {
		t := time.NewTicker(o.Window)
		defer t.Stop()
		for {
			select {
			case <-d.end:
				return
			case <-t.C:
			}
			d.mu.Lock()
			came := d.bytes
			d.bytes = 0
			d.mu.Unlock()
			if came < o.MinBytes {
				cancel(errTooSlow)
				return
			}
		}
	})
	return d
}

func (d *watchdog) fed(n int64) {
	d.mu.Lock()
	d.bytes += n
	d.mu.Unlock()
}

func (d *watchdog) stop() {
	close(d.end)
	d.gone.Wait()
}
