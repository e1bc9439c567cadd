// Package refusal reports what was refused without letting the refused one fill
// the log: every refusal is counted under its typed reason, a few a second are
// written, and the next one that is written says how many were not.
package refusal

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"portcullis/internal/event"
)

// Of each reason, this many are written at once and then one each interval.
const (
	burst = 20
	every = time.Second
)

// Log counts and reports refusals. It is safe for concurrent use.
type Log struct {
	events *event.Writer
	now    func() time.Time

	mu      sync.Mutex
	reasons map[string]*tally
}

type tally struct {
	total, silent uint64
	limit         *rate.Limiter
}

// New makes a log that writes to events.
func New(events *event.Writer, now func() time.Time) *Log {
	return &Log{events: events, now: now, reasons: map[string]*tally{}}
}

// Note counts one refusal and writes the event name unless there were too many
// of its reason. Reasons come from constants; the map stays small.
func (l *Log) Note(name, reason string, f event.Fields) {
	l.mu.Lock()
	t := l.reasons[reason]
	if t == nil {
		t = &tally{limit: rate.NewLimiter(rate.Every(every), burst)}
		l.reasons[reason] = t
	}
	t.total++
	if !t.limit.AllowN(l.now(), 1) {
		t.silent++
		l.mu.Unlock()
		return
	}
	silent := t.silent
	t.silent = 0
	l.mu.Unlock()
	f = maps.Clone(f)
	if f == nil {
		f = event.Fields{}
	}
	f["reason"] = reason
	if silent > 0 {
		f["silent"] = silent
	}
	l.events.Emit(name, f)
}

// Counts returns how often each reason was noted.
func (l *Log) Counts() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := make(map[string]uint64, len(l.reasons))
	for reason, t := range l.reasons {
		counts[reason] = t.total
	}
	return counts
}
