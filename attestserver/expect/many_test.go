package expect_test

import (
	"maps"
	"sync"
	"testing"

	"portcullis/attestserver/protocol"
)

// Several PCs run the same image, and one set of expectations judges them all at
// once: what they read of the image is nobody's own.
func TestManyPCsAreJudgedAtOnce(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	var asked []protocol.JudgeInput
	var ops []string
	for op := range m.twins {
		if op != protocol.OpTpm && op != protocol.OpTsm { // a machine without either
			ops = append(ops, op)
			asked = append(asked, m.input(op, false))
		}
	}
	for round := range 3 {
		var group sync.WaitGroup
		for pc := range 8 {
			group.Go(func() {
				state := *m.state
				state.Notes, state.Kept = maps.Clone(m.state.Notes), maps.Clone(m.state.Kept)
				for i := range ops {
					i = (i + pc) % len(ops)
					in := asked[i]
					in.State = &state
					for _, f := range m.twins[ops[i]].Judge(in) {
						if f.Class != protocol.Info {
							t.Errorf("round %d, PC %d, %s: %+v", round, pc, ops[i], f)
						}
					}
				}
			})
		}
		group.Wait()
	}
}
