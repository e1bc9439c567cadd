package expect_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/teequote"
)

// fakeTSM lets the machine's kernel hand out reports that nobody has signed.
func (m *machine) fakeTSM() *faketsm.ReportSubsystem {
	sub := faketsm.Report611(0)
	m.host.TSM = func() (configfsi.Client, func(), error) {
		return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": sub}}, func() {}, nil
	}
	m.startAgent()
	return sub
}

func (m *machine) tsmTier() (protocol.Tier, bool) {
	m.t.Helper()
	tier, taken, err := m.twins[protocol.OpTsm].(protocol.Rooted).Settle(m.state, m.refs)
	m.check(err)
	return tier, taken
}

// The agent asks the kernel for a report of exactly this question, and leaves
// nothing behind in configfs.
func TestTsm_ReportIsBoundToTheQuestion(t *testing.T) {
	m := newMachine(t)
	sub := m.fakeTSM()
	seen := map[string]bool{}
	for range 50 {
		in := m.input(protocol.OpTsm, false)
		var d protocol.TsmData
		m.check(json.Unmarshal(in.Output.Data, &d))
		want := in.Key.ReportData(in.Params)
		if d.Provider != "fake" || !d.Present || !strings.Contains(string(d.Report), hexOf(want[:])) || seen[string(d.Report)] {
			t.Fatalf("%+v", d)
		}
		seen[string(d.Report)] = true
		for bit := range 8 * 32 {
			key := in.Key
			key[bit/8] ^= 1 << (bit % 8)
			if key.ReportData(in.Params) == want {
				t.Fatal("one bit of nonce, channel or challenge changes nothing")
			}
		}
	}
	if len(sub.Entries) != 0 {
		t.Errorf("%d entries were left behind", len(sub.Entries))
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

// Mock evidence, a stranger's genuine quote, rubbish: never more than T0, and no
// complaint about a machine that was never enrolled.
func TestAttackTsmEvidenceThatProvesNothing(t *testing.T) {
	m := newMachine(t)
	m.fakeTSM()
	m.wants(m.judge(protocol.OpTsm), protocol.Info, expect.ReasonTsmUnusable, "no confidential machine that is known")
	if tier, taken := m.tsmTier(); tier != protocol.TierSoftware || taken {
		t.Errorf("tier %s, taken %v", tier, taken)
	}
	for name, d := range map[string]protocol.TsmData{
		"for another question": {Present: true, Provider: teequote.TDX, Report: tdxdata.RawQuote},
		"TDX":                  {Present: true, Provider: teequote.TDX, Report: []byte{4, 0, 2, 0}},
		"SEV-SNP":              {Present: true, Provider: teequote.SEV, Report: make([]byte, 0x4a0)},
		"no confidential":      {Present: true, Provider: "arm_cca_guest"},
	} {
		m.state.Notes, m.state.Kept = map[string][]byte{}, nil
		in := m.ask(protocol.OpTsm, false)
		b, err := json.Marshal(d)
		m.check(err)
		in.Output = protocol.Output{Data: b, Digest: in.Key.Digest(protocol.OpTsm, in.Params, b)}
		detail := strings.TrimPrefix(name, "for ")
		m.wants(m.twins[protocol.OpTsm].Judge(in), protocol.Info, expect.ReasonTsmUnusable, detail)
		if tier, taken := m.tsmTier(); tier != protocol.TierSoftware || taken || len(m.refs) != 0 {
			t.Errorf("%s: tier %s, taken %v", name, tier, taken)
		}
	}
	// Enrolled, all of it is fatal.
	m.check(m.refs.Put("tsm", strings.ReplaceAll(testMAC, ":", "-"), []byte(`{"version":1,"provider":"tdx_guest","measurements":{}}`)))
	m.wants(m.judge(protocol.OpTsm), protocol.Fatal, expect.ReasonTsmReport, "known")
	m.host.TSM = func() (configfsi.Client, func(), error) { return nil, nil, os.ErrNotExist }
	m.startAgent()
	m.wants(m.judge(protocol.OpTsm), protocol.Fatal, expect.ReasonTsmMissing, "says it is none")
	m.host.TSM = func() (configfsi.Client, func(), error) { return nil, nil, os.ErrPermission }
	m.startAgent()
	m.wants(m.judge(protocol.OpTsm), protocol.Soft, expect.ReasonTsmFault, "permission")
}

// What is built for use has no code for mock evidence. The same program, built
// with the tag, has it: the search would find it.
func TestReleaseProgramsCannotTakeMockEvidence(t *testing.T) {
	dir := t.TempDir()
	marker := []byte("portcullis-mock-tee-evidence-is-accepted")
	build := func(name string, args ...string) []byte {
		t.Helper()
		out := filepath.Join(dir, name)
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", out}, args...), "portcullis/cmd/attestd")...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if bytes.Contains(build("release"), marker) {
		t.Error("attestd takes mock evidence")
	}
	if !bytes.Contains(build("mock", "-tags", "mocktee"), marker) {
		t.Error("the tag builds no other program: this test proves nothing")
	}
	for _, program := range []string{"portcullis/cmd/attestd", "portcullis/cmd/hpc-agent"} {
		deps, err := exec.Command("go", "list", "-deps", program).Output()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(deps, []byte("faketsm")) || bytes.Contains(deps, []byte("guest/testing")) {
			t.Errorf("%s holds a fake", program)
		}
	}
}
