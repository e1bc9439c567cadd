package server_test

import (
	"encoding/json"
	"testing"
)

// What an op notes with every answer is in the log once, and again when it is
// another or when the verdict changes; it is told with every answer.
func TestNotesAreWrittenWhenTheyChange(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	noted := func(detail string) map[string]any { return map[string]any{"reason": "noted", "detail": detail} }
	at := l.events.count()
	l.machine.set("net", "noted")
	for range 4 {
		at, _ = l.await(at+1, "finding", noted("noted"))
	}
	l.machine.set("net", "noted too")
	for range 3 {
		at, _ = l.await(at+1, "finding", noted("noted too"))
	}
	l.machine.setOnce("boot", "bad")
	at, _ = l.awaitState(at, "suspect")
	l.awaitState(at, "trusted")
	l.stop()
	var got []string
	err := l.log().Audit(func(_ int64, b []byte) error {
		var e struct {
			State    string
			Findings []struct{ Reason, Detail string }
		}
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		for _, f := range e.Findings {
			if f.Reason == "noted" {
				got = append(got, f.Detail+" "+e.State)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Behind the first two: with the failure and with the trust that came back,
	// where those answers had the op in them.
	if len(got) < 2 || len(got) > 4 || got[0] != "noted trusted" || got[1] != "noted too trusted" {
		t.Errorf("the log has %q", got)
	}
}
