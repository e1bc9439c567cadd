package flash

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"portcullis/internal/event"
)

// drive reports 100 MB in 10 seconds, ten times a second.
func drive(m func(now func() time.Time) *Meter) {
	now := time.Unix(1_700_000_000, 0)
	meter := m(func() time.Time { return now })
	for i := 1; i <= 100; i++ {
		meter.Report(PhaseWrite, int64(i)*1e6, 100e6)
		now = now.Add(100 * time.Millisecond)
	}
	meter.End()
}

func TestBarOnATerminal(t *testing.T) {
	var out bytes.Buffer
	drive(func(now func() time.Time) *Meter { return NewMeter(&out, true, now) })
	drawn := strings.Split(out.String(), "\r")
	if len(drawn) < 45 || len(drawn) > 55 || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("%d times drawn, %d lines", len(drawn), strings.Count(out.String(), "\n"))
	}
	if middle := drawn[26]; !strings.Contains(middle, "write   [############............]  51 %  51.0 MB of 100.0 MB  10.2 MB/s  0:05 left") {
		t.Errorf("%q", middle)
	}
	if last := drawn[len(drawn)-1]; !strings.Contains(last, "[########################] 100 %") || strings.Contains(last, "left") {
		t.Errorf("%q", last)
	}
}

func TestPlainLinesElsewhere(t *testing.T) {
	var out bytes.Buffer
	drive(func(now func() time.Time) *Meter { return NewMeter(&out, false, now) })
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || strings.ContainsAny(out.String(), "\r\x1b") || !strings.HasPrefix(lines[2], "write   100 %") {
		t.Errorf("%q", lines)
	}
}

func TestProgressEvents(t *testing.T) {
	var out bytes.Buffer
	drive(func(now func() time.Time) *Meter { return NewEventMeter(event.NewJSON(&out, "flash", now), now) })
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 11 {
		t.Errorf("%d events", len(lines))
	}
	var e struct {
		Event, Phase            string
		Done, Total, Rate, Left int64
	}
	if err := json.Unmarshal([]byte(lines[5]), &e); err != nil {
		t.Fatal(err)
	}
	if e.Event != "flash.progress" || e.Phase != PhaseWrite || e.Done != 51e6 || e.Total != 100e6 || e.Rate != 10.2e6 || e.Left != 5 {
		t.Errorf("%+v", e)
	}
}
