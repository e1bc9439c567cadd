package debroot

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// reporter shows progress: a bar on a terminal, a line a stage elsewhere.
type reporter struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	name     string
	detail   string
	begin    time.Time
	last     time.Time
}

// quietStage is how long a stage may take before it is worth a line.
const quietStage = 300 * time.Millisecond

// barEvery bounds how often the bar is drawn, lineEvery how often a line is written.
const (
	barEvery  = 100 * time.Millisecond
	lineEvery = 2 * time.Second
)

// NewReporter returns progress for people on w.
func NewReporter(w io.Writer, terminal bool) Progress { return &reporter{w: w, terminal: terminal} }

func (r *reporter) Stage(name, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.name, r.detail, r.begin, r.last = name, detail, time.Now(), time.Now()
}

func (r *reporter) Step(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	every := lineEvery
	if r.terminal {
		every = barEvery
	}
	if total <= 0 || time.Since(r.last) < every {
		return
	}
	r.last = time.Now()
	done = min(done, total)
	if !r.terminal {
		if total < 1e6 { // not bytes but steps
			fmt.Fprintf(r.w, "%-9s %3d %%\n", r.name, done*100/total)
			return
		}
		fmt.Fprintf(r.w, "%-9s %3d %%  %.0f of %.0f MB\n", r.name, done*100/total, float64(done)/1e6, float64(total)/1e6)
		return
	}
	const width = 30
	full := int(done * width / total)
	fmt.Fprintf(r.w, "\r%-9s [%s%s] %3d %% \x1b[K", r.name, strings.Repeat("#", full), strings.Repeat(".", width-full), done*100/total)
}

func (r *reporter) Done(cached bool, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.terminal {
		fmt.Fprint(r.w, "\r\x1b[K")
	}
	if cached || took < quietStage {
		return
	}
	fmt.Fprintf(r.w, "%-9s %s %.1f s\n", r.name, r.detail, took.Seconds())
}
