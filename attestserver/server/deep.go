package server

import (
	"iter"
	"sync"
)

// maxResting is how many stacks are kept.
const maxResting = 16

// deep lends stacks to what needs a deep one (TLS, JSON, calls to other services, rules) in
// goroutines that mostly wait: a PC has ten of them, and what each would keep, or grow
// again each time, is more than all else that is held of a PC. The stacks are shared by all
// PCs, and nobody waits for one.
var deep stacks

type stacks struct {
	mu   sync.Mutex
	rest []*stack // the one used last is taken first
}

// stack is a coroutine. The runtime goes over to it and back without its scheduler, where
// a goroutine that is handed work has another thread woken.
type stack struct {
	next func() (struct{}, bool)
	stop func()
	work func()
}

// do returns when f has run.
func (d *stacks) do(f func()) {
	s := d.take()
	s.work = f
	s.next()
	s.work = nil
	d.mu.Lock()
	keep := len(d.rest) < maxResting
	if keep {
		d.rest = append(d.rest, s)
	}
	d.mu.Unlock()
	if !keep {
		s.stop()
	}
}

// begin has f run beside the caller.
func (d *stacks) begin(f func()) { go d.do(f) }

func (d *stacks) take() *stack {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.rest) - 1; n >= 0 {
		s := d.rest[n]
		d.rest[n], d.rest = nil, d.rest[:n]
		return s
	}
	s := new(stack)
	s.next, s.stop = iter.Pull(func(yield func(struct{}) bool) {
		for again := true; again; again = yield(struct{}{}) {
			s.work()
		}
	})
	return s
}
