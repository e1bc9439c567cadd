package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"portcullis/internal/event"
)

// Printer writes the events of a lab: one JSON object a line, or lines for people
// with the seconds since the printer began.
type Printer struct {
	Out    io.Writer
	JSON   bool
	Colour bool

	once  sync.Once
	began time.Time
	mu    sync.Mutex
}

// Print writes one event.
func (p *Printer) Print(e Event) {
	p.once.Do(func() { p.began = time.Now() })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.JSON {
		m := make(map[string]any, len(e.Fields)+3)
		for k, v := range e.Fields {
			m[k] = v
		}
		m["time"], m["event"], m["source"] = e.Time.UTC().Format(time.RFC3339Nano), e.Name, e.Source
		b, err := json.Marshal(m)
		if err != nil {
			return // fields are plain values by construction
		}
		p.Out.Write(append(b, '\n'))
		return
	}
	f := event.Fields{}
	for k, v := range e.Fields {
		f[k] = v
	}
	fmt.Fprintf(p.Out, "%7.1fs  %-8s %s\n", time.Since(p.began).Seconds(), e.Source, p.paint(e, event.Line(e.Name, f)))
}

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	bold  = "\x1b[1m"
	reset = "\x1b[0m"
)

// paint gives the lines that matter a colour, on a terminal.
func (p *Printer) paint(e Event, line string) string {
	if !p.Colour {
		return line
	}
	colour := ""
	switch {
	case e.Name == "verdict" && e.Text("state") == "trusted":
		colour = green
	case e.Name == "verdict" && (e.Text("state") == "quarantined" || e.Text("state") == "suspect"):
		colour = red
	case e.Name == "finding", e.Name == "ban", e.Name == "pc.failed", e.Name == "claim.double",
		strings.HasPrefix(e.Name, "daemon."), strings.HasSuffix(e.Name, ".refused"):
		colour = red
	case e.Name == "pc.stage", e.Name == "pc.power":
		colour = bold
	}
	if colour == "" {
		return line
	}
	return colour + line + reset
}
