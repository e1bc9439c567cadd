package violation

import "sync"

// Kept is how many violations a Ring remembers.
const Kept = 64

// Ring keeps the newest violations.
type Ring struct {
	mu   sync.Mutex
	list [Kept]Violation
	next int
	full bool
}

// Add puts v in, in place of the oldest.
func (r *Ring) Add(v Violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list[r.next] = v
	r.next = (r.next + 1) % Kept
	r.full = r.full || r.next == 0
}

// Newest lists what is kept, the newest first.
func (r *Ring) Newest() []Violation {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.next
	if r.full {
		n = Kept
	}
	out := make([]Violation, 0, n)
	for i := range n {
		out = append(out, r.list[(r.next-1-i+Kept)%Kept])
	}
	return out
}
