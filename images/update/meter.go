package update

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// meterEvery is how often a meter prints, and how long it is silent at first: what
// takes less needs no bar.
const meterEvery = 2 * time.Second

// Meter shows progress: one line that is drawn over on a terminal, plain lines
// elsewhere.
type Meter struct {
	out      io.Writer
	terminal bool
	now      func() time.Time

	stage       string
	begin, last time.Time
	drawn       bool
}

// NewMeter makes a meter.
func NewMeter(out io.Writer, terminal bool, now func() time.Time) *Meter {
	return &Meter{out: out, terminal: terminal, now: now}
}

const meterWidth = 30

// Show is a Progress.
func (m *Meter) Show(stage string, done, total int64) {
	now := m.now()
	if stage != m.stage {
		m.End()
		m.stage, m.begin, m.last = stage, now, now
	}
	every := meterEvery
	if m.terminal && m.drawn {
		every /= 8
	}
	if total == 0 || now.Sub(m.last) < every && !(m.drawn && done == total) {
		return
	}
	m.last = now
	took := now.Sub(m.begin).Seconds()
	rate := float64(done) / max(took, 0.001)
	if total < 0 { // nobody knows
		m.line(stage, "", fmt.Sprintf("%d MB, %.1f MB/s", done>>20, rate/1e6))
		return
	}
	text := fmt.Sprintf("%3d%%  %d of %d MB, %.1f MB/s, %.0f s left", done*100/total, done>>20, total>>20, rate/1e6, float64(total-done)/max(rate, 1))
	full := int(done * meterWidth / total)
	m.line(stage, "["+strings.Repeat("#", full)+strings.Repeat(" ", meterWidth-full)+"] ", text)
}

// line draws over the last one on a terminal, and is one of its own without the bar elsewhere.
func (m *Meter) line(stage, bar, text string) {
	if !m.terminal {
		fmt.Fprintf(m.out, "%s %s\n", stage, text)
		return
	}
	fmt.Fprintf(m.out, "\r%-6s %s%s\x1b[K", stage, bar, text)
	m.drawn = true
}

// End leaves the line.
func (m *Meter) End() {
	if m.drawn {
		fmt.Fprintln(m.out)
		m.drawn = false
	}
}
