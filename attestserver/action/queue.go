package action

import (
	"context"
	"sync"
)

// queue is a bounded list of jobs with one reader.
type queue struct {
	limit int
	mu    sync.Mutex
	jobs  []*job
	more  chan struct{}
}

func newQueue(limit int) *queue { return &queue{limit: limit, more: make(chan struct{}, 1)} }

// put adds j, unless the queue is full.
func (q *queue) put(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs) >= q.limit {
		return false
	}
	q.jobs = append(q.jobs, j)
	select {
	case q.more <- struct{}{}:
	default:
	}
	return true
}

// take waits for a job; nil means that ctx has ended.
func (q *queue) take(ctx context.Context) *job {
	for ctx.Err() == nil {
		q.mu.Lock()
		if len(q.jobs) > 0 {
			j := q.jobs[0]
			q.jobs = q.jobs[1:]
			q.mu.Unlock()
			return j
		}
		q.mu.Unlock()
		select {
		case <-q.more:
		case <-ctx.Done():
		}
	}
	return nil
}
