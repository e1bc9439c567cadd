package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// Event is one line of any part of the lab: a service, the PC's console, QEMU or
// the lab itself.
type Event struct {
	Time   time.Time
	Name   string // event
	Source string // gatewayd, pxed, attestd, pc, pi, lab
	Fields map[string]any
}

// Text returns a field as text, "" when it is absent.
func (e Event) Text(key string) string {
	v, ok := e.Fields[key]
	if !ok || v == nil {
		return ""
	}
	if s, ok := v.(string); ok {
		return s
	}
	return fmt.Sprint(v)
}

// Number returns a numeric field, 0 when it is absent.
func (e Event) Number(key string) float64 {
	f, _ := e.Fields[key].(float64)
	return f
}

// ParseEvent reads one JSON line of a service; source is its name, "" where the
// line itself is to tell. ok is false for anything else, for instance a panic's
// text.
func ParseEvent(line []byte, source string) (e Event, ok bool) {
	var m map[string]any
	if json.Unmarshal(line, &m) != nil {
		return Event{}, false
	}
	name, _ := m["event"].(string)
	at, _ := m["time"].(string)
	t, err := time.Parse(time.RFC3339Nano, at)
	if name == "" || err != nil {
		return Event{}, false
	}
	delete(m, "event")
	delete(m, "time")
	if source == "" {
		source, _ = m["source"].(string)
	}
	delete(m, "source")
	return Event{Time: t, Name: name, Source: source, Fields: m}, true
}

// Log keeps all events of a lab in the order in which the lab learned them and
// wakes those who wait for one.
type Log struct {
	mu     sync.Mutex
	events []Event
	more   chan struct{} // closed and renewed with every event
	sink   func(Event)
}

// NewLog returns an empty log; sink, if not nil, sees each event, one at a time.
func NewLog(sink func(Event)) *Log {
	return &Log{more: make(chan struct{}), sink: sink}
}

// Add appends an event.
func (l *Log) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	close(l.more)
	l.more = make(chan struct{})
	if l.sink != nil {
		l.sink(e)
	}
}

// Mark is the place after the newest event: Wait from here sees later ones only.
func (l *Log) Mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events)
}

// Since returns the events from mark on.
func (l *Log) Since(mark int) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Event(nil), l.events[min(mark, len(l.events)):]...)
}

// Wait returns the first event at or after mark that match accepts.
func (l *Log) Wait(ctx context.Context, mark int, match func(Event) bool) (Event, error) {
	for {
		l.mu.Lock()
		seen, more := l.events, l.more
		l.mu.Unlock()
		for ; mark < len(seen); mark++ {
			if match(seen[mark]) {
				return seen[mark], nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Is matches events by name.
func Is(name string) func(Event) bool {
	return func(e Event) bool { return e.Name == name }
}

// With matches events by name and text of one field.
func With(name, key, value string) func(Event) bool {
	return func(e Event) bool { return e.Name == name && e.Text(key) == value }
}
