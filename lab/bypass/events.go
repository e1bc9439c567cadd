package bypass

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"
)

// events keeps what the guard tells.
type events struct {
	mu   sync.Mutex
	list []map[string]any
	text bytes.Buffer
}

func (l *events) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var e map[string]any
	if err := json.Unmarshal(b, &e); err != nil {
		return 0, err
	}
	l.list = append(l.list, e)
	return l.text.Write(b)
}

func (l *events) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *events) mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.list)
}

// wait waits for an event after mark, for at most limit.
func (l *events) wait(ctx context.Context, mark int, limit time.Duration, is func(map[string]any) bool) bool {
	end := time.Now().Add(limit)
	for {
		l.mu.Lock()
		for _, e := range l.list[mark:] {
			if is(e) {
				l.mu.Unlock()
				return true
			}
		}
		mark = len(l.list)
		l.mu.Unlock()
		if ctx.Err() != nil || time.Now().After(end) {
			return false
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// reasons of the refusals after mark.
func (l *events) reasons(mark int) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.list[mark:] {
		if reason, ok := e["reason"].(string); ok && e["event"] == "guard.refused" {
			out = append(out, reason)
		}
	}
	return out
}
