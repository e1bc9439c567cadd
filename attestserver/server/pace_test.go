package server_test

import (
	"testing"
	"time"

	"portcullis/attestserver/deadline"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/reference"
)

// A PC whose answers are right and slower than was learned, again and again, is
// told, becomes a suspect, and is trusted again; it is never quarantined for it.
func TestRepeatedSlownessMakesASuspectAndNoMore(t *testing.T) {
	l := newLab(t)
	l.deadline, l.names = 5*time.Second, []string{"hw", "procs"}
	refs, err := reference.Open(l.dir + "/references")
	if err != nil {
		t.Fatal(err)
	}
	m := deadline.Model{Schema: 1, Count: deadline.Enough, Ops: map[string]deadline.Op{}, Rest: 0.001}
	for _, n := range l.names {
		m.Ops[n] = deadline.Op{Mean: 0.001, Count: deadline.Enough}
	}
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	key := protocol.ReferenceKey(&protocol.ImageState{Image: &protocol.Image{Digest: l.digest}, CPUClass: l.machine.class})
	if err := refs.Put("deadline", key, b); err != nil {
		t.Fatal(err)
	}
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	at, _ := l.awaitState(0, "trusted")
	for range deadline.Row {
		at, _ = l.await(at+1, "evidence", nil)
	}
	l.machine.set("procs", "1200ms")
	l.await(at, "finding", map[string]any{"reason": protocol.EvidenceSlow, "class": "info"})
	at, v := l.awaitState(at, "suspect")
	if v["reason"] != protocol.EvidenceSlow {
		t.Errorf("verdict %v", v)
	}
	l.awaitState(at, "trusted")
	if _, e, _ := l.events.find(0, "verdict", map[string]any{"state": "quarantined"}); e != nil {
		t.Errorf("%v", e)
	}
	if n := l.verdict().Failures; n != 0 {
		t.Errorf("%d failures for slowness alone", n)
	}
}
