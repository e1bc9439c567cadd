package server_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"sync"
	"time"
)

// events collects what attestd reports.
type events struct {
	mu   sync.Mutex
	all  []map[string]any
	more chan struct{}
}

func newEvents() *events { return &events{more: make(chan struct{})} }

func (e *events) Write(b []byte) (int, error) {
	s := bufio.NewScanner(bytes.NewReader(b))
	e.mu.Lock()
	defer e.mu.Unlock()
	for s.Scan() {
		var m map[string]any
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			return 0, err
		}
		e.all = append(e.all, m)
	}
	close(e.more)
	e.more = make(chan struct{})
	return len(b), nil
}

// find returns the first event after position from that has all the fields.
func (e *events) find(from int, name string, fields map[string]any) (int, map[string]any, chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
next:
	for i := from; i < len(e.all); i++ {
		if e.all[i]["event"] != name {
			continue
		}
		for k, v := range fields {
			if e.all[i][k] != v {
				continue next
			}
		}
		return i, e.all[i], nil
	}
	return 0, nil, e.more
}

func (e *events) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.all)
}

// await waits for an event after position from and returns its position.
func (l *lab) await(from int, name string, fields map[string]any) (int, map[string]any) {
	l.t.Helper()
	limit := time.After(patience)
	for {
		i, m, more := l.events.find(from, name, fields)
		if m != nil {
			return i, m
		}
		select {
		case <-more:
		case <-limit:
			l.events.mu.Lock()
			defer l.events.mu.Unlock()
			for _, e := range l.events.all[from:] {
				l.t.Log(e)
			}
			l.t.Fatalf("no event %s %v", name, fields)
		}
	}
}

func (l *lab) awaitState(from int, state string) (int, map[string]any) {
	l.t.Helper()
	return l.await(from, "verdict", map[string]any{"state": state})
}
