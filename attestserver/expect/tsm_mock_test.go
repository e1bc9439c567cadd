//go:build mocktee

package expect_test

import (
	"os"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

// The whole way, with reports that nobody signs (go test -tags mocktee, which make soak does).
func TestTsm_EnrolsAndMustComeBack(t *testing.T) {
	m := newMachine(t)
	m.fakeTSM()
	for i := range 3 {
		if f := m.judge(protocol.OpTsm); len(f) > 0 {
			t.Fatalf("%+v", f)
		}
		if tier, taken := m.tsmTier(); tier != protocol.TierTEE || taken != (i == 0) {
			t.Fatalf("tier %s, taken %v", tier, taken)
		}
	}
	old := m.input(protocol.OpTsm, false)
	now := m.ask(protocol.OpTsm, false)
	now.Output = protocol.Output{Data: old.Output.Data, Digest: now.Key.Digest(protocol.OpTsm, now.Params, old.Output.Data)}
	m.wants(m.twins[protocol.OpTsm].Judge(now), protocol.Fatal, expect.ReasonTsmReport, "another question")
	m.host.TSM = func() (configfsi.Client, func(), error) { return nil, nil, os.ErrNotExist }
	m.startAgent()
	m.wants(m.judge(protocol.OpTsm), protocol.Fatal, expect.ReasonTsmMissing, "")
}
