package server

import (
	"slices"
	"sync"
	"time"
)

// enrolling is how many PCs of a fleet are asked for references at a time: an answer with
// kernel text is 1.6 MiB, and a rack that boots a new image asks for one of each PC.
const enrolling = 4

// lineLook is how often who stands in the line looks whether it is its turn. It is also
// told; this is for when a PC before it has gone without a word.
const lineLook = 5 * time.Second

// line is where the PCs of a fleet stand that references are to be taken of, in the order
// in which they came: a PC whose answer has failed stands behind all who wait, so that a
// hostile one takes from the others one turn at a time.
type line struct {
	mu sync.Mutex
	in []place
}

// place is that of one PC. It is lost after until: a place that nobody gives back must
// not keep the others waiting for ever.
type place struct {
	of    *Server
	until time.Time
}

// enter tells whether it is the turn of s, which then has it for hold. If not, s keeps its
// place by asking again within twice lineLook.
func (l *line) enter(s *Server, now time.Time, hold time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in = slices.DeleteFunc(l.in, func(p place) bool { return p.of != s && now.After(p.until) })
	i := slices.IndexFunc(l.in, func(p place) bool { return p.of == s })
	if i < 0 {
		i, l.in = len(l.in), append(l.in, place{of: s})
	}
	if i >= enrolling {
		l.in[i].until = now.Add(2 * lineLook)
		return false
	}
	l.in[i].until = now.Add(hold)
	return true
}

// leave gives a place back, and returns whose turn it is instead, nil where nobody's.
func (l *line) leave(s *Server) (next *Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.in, func(p place) bool { return p.of == s })
	if i < 0 {
		return nil
	}
	l.in = slices.Delete(l.in, i, i+1)
	if i < enrolling && len(l.in) >= enrolling {
		return l.in[enrolling-1].of
	}
	return nil
}

// stands tells whether references may be taken of this PC now. If not, it asks again later.
func (c *core) stands(now time.Time, deadline time.Duration) bool {
	// Those who have their turn wait for each other when they are judged.
	if c.line.enter(c.Server, now, 2*deadline) {
		return true
	}
	c.link.busy = now.Add(lineLook)
	c.link.waits = true
	return false
}

// leave ends the turn of this PC, or its wait for one.
func (c *core) leave() {
	if c.link != nil {
		c.link.waits = false
	}
	if next := c.line.leave(c.Server); next != nil {
		go next.work(func(c *core) {
			if c.link != nil && c.link.waits {
				c.link.busy, c.link.waits = time.Time{}, false
			}
		})
	}
}
