package server

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"portcullis/gateway/nft"
	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
)

// fakeKernel keeps what it was told and lets elements die as the kernel does.
type fakeKernel struct {
	mu      sync.Mutex
	clock   *fakeClock
	rs      *ruleset.Ruleset
	at      time.Time
	applies int
	broken  error
	drift   []nft.Drift
	refuses int // so many times Restore fails
	asked   int // how often Restore was called
}

func (k *fakeKernel) Apply(rs *ruleset.Ruleset) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		return k.broken
	}
	k.rs, k.at = rs, k.clock.Now()
	k.applies++
	return nil
}
func (k *fakeKernel) SetRun(rs *ruleset.Ruleset) error    { return k.Apply(rs) }
func (k *fakeKernel) SetGrants(rs *ruleset.Ruleset) error { return k.Apply(rs) }
func (k *fakeKernel) Counters() (map[string]uint64, error) {
	return map[string]uint64{"vlan": 2, "ban": 1, "stale-flow": 7, "output": 9}, nil
}
func (k *fakeKernel) BanLeft() (time.Duration, error) { return time.Minute, nil }
func (k *fakeKernel) LinkBound() error                { return nil }

func (k *fakeKernel) Restore() ([]nft.Drift, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.refuses > 0 {
		k.refuses--
		return k.drift, errors.New("no")
	}
	return k.drift, nil
}

func (k *fakeKernel) Grants() (map[policy.Target]time.Duration, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	left := map[policy.Target]time.Duration{}
	if k.rs == nil {
		return left, false, nil
	}
	for _, s := range k.rs.Table("inet", ruleset.IPTable).Sets {
		if s.Name == ruleset.GrantSet {
			for _, e := range s.Elements {
				t, err := policy.ParseTarget(e.Text)
				if err != nil {
					return nil, false, err
				}
				if d := e.Timeout - k.clock.Now().Sub(k.at); d > 0 {
					left[t] = d
				}
			}
		}
	}
	return left, true, nil
}

// fakeClock moves by hand; the wall can be set apart from the time that passes.
type fakeClock struct {
	mu    sync.Mutex
	now   time.Time
	waits []wait
}
type wait struct {
	at time.Time
	c  chan time.Time
}

func (c *fakeClock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := wait{c.now.Add(d), make(chan time.Time, 1)}
	if d <= 0 {
		w.c <- c.now
	} else {
		c.waits = append(c.waits, w)
	}
	return w.c
}
func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	var later []wait
	for _, w := range c.waits {
		if w.at.After(c.now) {
			later = append(later, w)
		} else {
			w.c <- c.now
		}
	}
	c.waits = later
}

type fakeWire struct {
	mu      sync.Mutex
	cuts    int
	wakes   int
	routing bool
	broken  error // what Route says
}

func (w *fakeWire) Cut(netip.Addr) error { w.mu.Lock(); defer w.mu.Unlock(); w.cuts++; return nil }
func (w *fakeWire) Route(on bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil {
		w.routing = on
	}
	return w.broken
}

func (w *fakeWire) Wake() error { w.mu.Lock(); defer w.mu.Unlock(); w.wakes++; return nil }
