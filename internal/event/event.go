// Package event writes what happened: one JSON object a line for machines, or
// one readable line for people. Every program of the project reports through
// it, with the same keys (session, mac, reason, artefact, task, probe).
package event

import (
	"fmt"
	"io"
	"maps"
	"sort"
	"strings"
	"sync"
	"time"
)

// Fields are the keys of one event beside time and event. Values must be
// plain: string, bool, integers, floats, []string.
type Fields map[string]any

// Writer writes events; it is safe for concurrent use. A nil Writer drops them.
type Writer struct {
	sink   *sink
	with   Fields // in every event
	json   bool
	source string
	now    func() time.Time
}

// sink is what the writers of one output share.
type sink struct {
	mu  sync.Mutex
	out io.Writer

	keys []string // as those of the line before, to be used again
	buf  []byte
}

// With is a Writer to the same output that puts f into every event. What an event
// has itself under the same key comes first.
func (w *Writer) With(f Fields) *Writer {
	if w == nil {
		return nil
	}
	v := *w
	v.with = maps.Clone(w.with)
	if v.with == nil {
		v.with = make(Fields, len(f))
	}
	maps.Copy(v.with, f)
	return &v
}

// NewJSON writes one JSON object a line; source names the program.
func NewJSON(out io.Writer, source string, now func() time.Time) *Writer {
	return &Writer{sink: &sink{out: out}, json: true, source: source, now: now}
}

// NewText writes one readable line an event.
func NewText(out io.Writer, source string, now func() time.Time) *Writer {
	return &Writer{sink: &sink{out: out}, source: source, now: now}
}

// Emit writes one event. name is dotted and stable, for instance "session.opened".
func (w *Writer) Emit(name string, f Fields) {
	if w == nil {
		return
	}
	t := w.now()
	w.sink.mu.Lock()
	defer w.sink.mu.Unlock()
	if w.json {
		b, err := w.line(w.sink.buf[:0], t, name, f)
		if err != nil {
			b = fmt.Appendf(nil, `{"time":%q,"event":"event.unprintable","name":%q}`+"\n", t.UTC().Format(time.RFC3339Nano), name)
		}
		if cap(b) <= maxKept {
			w.sink.buf = b
		}
		w.sink.out.Write(b)
		return
	}
	if len(w.with) > 0 {
		own := f
		f = maps.Clone(w.with)
		maps.Copy(f, own)
	}
	fmt.Fprintf(w.sink.out, "%s %-9s %s\n", t.Format("15:04:05.000"), w.source, Line(name, f))
}

// Line renders an event without its time: name, then sorted key=value pairs.
func Line(name string, f Fields) string {
	keys := make([]string, 0, len(f))
	for k := range f {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	b.WriteString(name)
	for _, k := range keys {
		s := fmt.Sprint(f[k])
		if strings.ContainsAny(s, " \t\n\"=") || s == "" {
			s = fmt.Sprintf("%q", s)
		}
		fmt.Fprintf(&b, " %s=%s", k, s)
	}
	return b.String()
}
