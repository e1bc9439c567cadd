package expect

import (
	"testing"

	"portcullis/attestserver/protocol"
)

// Many notes of one op are no reason to distrust, and hide no finding behind them.
func TestAttack_NotesOfOneOpDoNotHideAFinding(t *testing.T) {
	j := &judge{op: "procs"}
	for range 3 * maxFindings {
		j.add(protocol.Info, "note", "of a task")
	}
	last := func() protocol.Finding { return j.list[len(j.list)-1] }
	if len(j.list) != maxFindings || last().Reason != protocol.FindingsMore || last().Class != protocol.Info {
		t.Fatalf("%d notes, the last is %+v", len(j.list), last())
	}
	j.fatal("unknown", "a program")
	j.add(protocol.Info, "note", "of a task")
	if len(j.list) != maxFindings || last().Class != protocol.Fatal {
		t.Errorf("a fatal finding behind %d notes is %+v", 3*maxFindings, last())
	}
}
