package refusal

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"portcullis/internal/event"
)

func TestFloodIsCountedAndNotWritten(t *testing.T) {
	now := time.Unix(1e9, 0)
	var out bytes.Buffer
	l := New(event.NewJSON(&out, "test", func() time.Time { return now }), func() time.Time { return now })
	for range 1000 {
		l.Note("drop", "flood", event.Fields{"mac": "x"})
	}
	l.Note("drop", "rare", nil)
	if n := strings.Count(out.String(), `"flood"`); n != burst {
		t.Errorf("%d of the flood were written", n)
	}
	if !strings.Contains(out.String(), `"rare"`) {
		t.Error("the flood hid another reason")
	}
	out.Reset()
	now = now.Add(every)
	l.Note("drop", "flood", event.Fields{"mac": "x"})
	if !strings.Contains(out.String(), `"silent":980`) {
		t.Errorf("the next line does not say how many were left out: %s", out.String())
	}
	if c := l.Counts(); c["flood"] != 1001 || c["rare"] != 1 {
		t.Errorf("counts %v", c)
	}
}

func TestFieldsOfTheCallerAreNotChanged(t *testing.T) {
	l := New(nil, time.Now)
	f := event.Fields{"mac": "x"}
	l.Note("drop", "why", f)
	if len(f) != 1 {
		t.Errorf("%v", f)
	}
}
