package action

import (
	"context"
	"sync"
)

// queue is a bounded list of jobs with one reader, who is there while there are jobs:
// most PCs never have one.
type queue struct {
	limit int

	mu    sync.Mutex
	jobs  []*job
	start func() // begins a reader; nil while the queue is closed
	read  bool   // there is one
}

func newQueue(limit int) *queue { return &queue{limit: limit} }

// open has start called whenever there are jobs and no reader; nil: from now on none begins.
func (q *queue) open(start func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.start = start
	q.wake()
}

// wake is called with mu held.
func (q *queue) wake() {
	if len(q.jobs) > 0 && q.start != nil && !q.read {
		q.read = true
		q.start()
	}
}

// put adds j, unless the queue is full.
func (q *queue) put(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs) >= q.limit {
		return false
	}
	q.jobs = append(q.jobs, j)
	q.wake()
	return true
}

// take gives the reader the next job; nil means that it must go: there is none, or ctx
// has ended.
func (q *queue) take(ctx context.Context) *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs) == 0 || ctx.Err() != nil {
		q.read = false
		return nil
	}
	j := q.jobs[0]
	q.jobs = q.jobs[1:]
	return j
}
