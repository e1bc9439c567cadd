package flash

import (
	"fmt"
	"io"
	"strings"
	"time"

	"portcullis/internal/event"
)

// Meter shows how far a run is: a bar on a terminal, now and then a line
// elsewhere, events for machines. Report fits Options.
type Meter struct {
	out      io.Writer
	events   *event.Writer // nil: text
	terminal bool
	now      func() time.Time

	phase       string
	began, last time.Time
	shown       bool
}

// NewMeter shows progress on out; terminal says that a line can be drawn over.
func NewMeter(out io.Writer, terminal bool, now func() time.Time) *Meter {
	return &Meter{out: out, terminal: terminal, now: now}
}

// NewEventMeter reports progress as flash.progress events.
func NewEventMeter(w *event.Writer, now func() time.Time) *Meter { return &Meter{events: w, now: now} }

// How often progress is shown.
const (
	everyBar   = 200 * time.Millisecond
	everyEvent = time.Second
	everyLine  = 5 * time.Second
)

// Report is told how many bytes a phase has done.
func (m *Meter) Report(phase string, done, total int64) {
	now := m.now()
	if phase != m.phase {
		m.phase, m.began, m.last = phase, now, time.Time{}
	}
	every := everyLine
	switch {
	case m.events != nil:
		every = everyEvent
	case m.terminal:
		every = everyBar
	}
	if done < total && now.Sub(m.last) < every {
		return
	}
	m.last = now
	rate, left := speed(done, total, now.Sub(m.began))
	switch {
	case m.events != nil:
		m.events.Emit("flash.progress", event.Fields{
			"phase": phase, "done": done, "total": total, "rate": int64(rate), "left": left.Round(time.Second).Seconds(),
		})
	case m.terminal:
		fmt.Fprintf(m.out, "\r%s\x1b[K", line(phase, done, total, rate, left, true))
		m.shown = true
		if done == total {
			m.End()
		}
	default:
		fmt.Fprintln(m.out, line(phase, done, total, rate, left, false))
	}
}

// End leaves the line of the bar, so that what follows stands below it.
func (m *Meter) End() {
	if m.shown {
		fmt.Fprintln(m.out)
		m.shown = false
	}
}

// speed returns bytes a second and the time that the phase still takes.
func speed(done, total int64, took time.Duration) (float64, time.Duration) {
	if took <= 0 || done <= 0 {
		return 0, 0
	}
	rate := float64(done) / took.Seconds()
	return rate, time.Duration(float64(total-done) / rate * float64(time.Second))
}

const barWidth = 24

func line(phase string, done, total int64, rate float64, left time.Duration, bar bool) string {
	part := 1.0
	if total > 0 {
		part = float64(done) / float64(total)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-7s", phase)
	if bar {
		full := int(part * barWidth)
		fmt.Fprintf(&b, " [%s%s]", strings.Repeat("#", full), strings.Repeat(".", barWidth-full))
	}
	fmt.Fprintf(&b, " %3d %%  %s of %s", int(part*100), Bytes(done), Bytes(total))
	if rate > 0 {
		fmt.Fprintf(&b, "  %.1f MB/s", rate/1e6)
		if done < total {
			left = left.Round(time.Second)
			fmt.Fprintf(&b, "  %d:%02d left", int(left.Minutes()), int(left.Seconds())%60)
		}
	}
	return b.String()
}
