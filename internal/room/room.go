// Package room counts who is inside, all together and each by himself, and lets in nobody for whom there is no place.
package room

import "sync"

// Room has a number of places, of which each K may have a few. Its methods may be called concurrently.
type Room[K comparable] struct {
	all, each int

	mu     sync.Mutex
	inside int
	of     map[K]int // has nobody who is not inside
}

// New makes an empty one.
func New[K comparable](all, each int) *Room[K] {
	return &Room[K]{all: all, each: each, of: map[K]int{}}
}

// Enter takes a place until leave is called, once or more often. Without a place there is no leave.
func (r *Room[K]) Enter(k K) (leave func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inside >= r.all || r.of[k] >= r.each {
		return nil, false
	}
	r.inside++
	r.of[k]++
	return sync.OnceFunc(func() { r.leave(k) }), true
}

// Inside is how many places are taken.
func (r *Room[K]) Inside() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inside
}

func (r *Room[K]) leave(k K) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inside--
	if r.of[k]--; r.of[k] == 0 {
		delete(r.of, k)
	}
}
