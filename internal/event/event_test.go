package event

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"
)

func fixed() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 5e6, time.UTC) }

func TestJSONIsOneObjectALine(t *testing.T) {
	var b bytes.Buffer
	w := NewJSON(&b, "pxed", fixed)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { w.Emit("session.opened", Fields{"session": "a\nb", "n": 1}) })
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != 50 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, l := range lines {
		var m map[string]any
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatal(err)
		}
		if m["event"] != "session.opened" || m["source"] != "pxed" || m["session"] != "a\nb" || m["time"] != "2026-03-01T12:00:00.005Z" {
			t.Fatalf("%v", m)
		}
	}
}

func TestUnprintableValueIsSaidNotLost(t *testing.T) {
	var b bytes.Buffer
	NewJSON(&b, "x", fixed).Emit("e", Fields{"f": func() {}})
	if !strings.Contains(b.String(), "event.unprintable") {
		t.Fatal(b.String())
	}
}

func TestTextLineCannotBeForged(t *testing.T) {
	var b bytes.Buffer
	NewText(&b, "pxed", fixed).Emit("dhcp.drop", Fields{"reason": "unknown", "detail": "x\nverdict state=trusted"})
	if strings.Count(b.String(), "\n") != 1 {
		t.Fatalf("a value broke the line: %q", b.String())
	}
	if !strings.Contains(b.String(), "reason=unknown") {
		t.Fatal(b.String())
	}
}

func TestNilWriterDrops(t *testing.T) {
	var w *Writer
	w.Emit("x", nil)
}
