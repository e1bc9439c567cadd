package ruleset

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/gateway/policy"
)

var update = flag.Bool("update", false, "write the golden files")

const session = "abcdefghijklmnopqrstuvwxyz"

func port() policy.Port {
	mac, _ := net.ParseMAC("52:54:00:12:34:56")
	return policy.Port{Interface: "eth1", Uplink: "eth0", Address: netip.MustParsePrefix("10.77.0.1/24"), PC: netip.MustParseAddr("10.77.0.2"), MAC: mac,
		HTTPPort: 80, Agent: 7443, BanAfter: 5, BanWindow: time.Minute, BanFor: 10 * time.Minute, LogGroup: 77}
}

func at(t *testing.T, phase policy.Phase) policy.Policy {
	t.Helper()
	p := policy.Initial(port())
	if phase == policy.Idle {
		return p
	}
	p, err := p.OpenBoot(session, "52:54:00:12:34:56", "10.77.0.2")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"203.0.113.10:443/tcp", "203.0.113.10:53/udp"} {
		target, err := policy.ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		p.Grants = append(p.Grants, policy.Grant{ID: "g-" + s, Task: "task", Target: target, Left: 10 * time.Minute})
	}
	if p, err = p.SetPhase(session, phase, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	return p
}

var phases = []policy.Phase{policy.Idle, policy.Boot, policy.Attest, policy.Run, policy.Quarantine}

// The canonical text of each phase; go test ./gateway/ruleset -update writes it anew.
func TestGolden(t *testing.T) {
	for _, ph := range phases {
		file := filepath.Join("testdata", string(ph)+".golden")
		got := Build(at(t, ph)).Dump()
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: the ruleset differs from %s; look at the difference, then run with -update", ph, file)
		}
	}
}

// One port of several has the same rules in tables, with log prefixes, of its own.
func TestGoldenOfARack(t *testing.T) {
	p := at(t, policy.Run)
	single := Build(p).Dump()
	p.Port.Name = "rack-1"
	got := Build(p).Dump()
	for from, to := range map[string]string{"table inet portcullis {": "table inet portcullis.rack-1 {",
		"table netdev portcullis-link {": "table netdev portcullis-link.rack-1 {", `log prefix "portcullis:`: `log prefix "portcullis.rack-1:`} {
		if !strings.Contains(single, from) {
			t.Fatalf("no %s", from)
		}
		single = strings.ReplaceAll(single, from, to)
	}
	if got != single {
		t.Error("the ruleset of a named port differs in more than its names")
	}
}

// TestInvariant01_TablesJudgeTheirOwnPortOnly: two ports' tables hook at the same places, where a drop of
// one is final for the packets of both. So each rule of a base chain begins with its own port, and
// what it does not match is left to the others; an address translation takes its own flows only.
func TestInvariant01_TablesJudgeTheirOwnPortOnly(t *testing.T) {
	for _, ph := range phases {
		p := at(t, ph)
		p.Port.Name, p.Port.Interface = "rack-1", "lan.10"
		for _, table := range Build(p).Tables {
			for _, c := range table.Chains {
				if c.Hook == nil {
					continue
				}
				if table.Family == "netdev" {
					if c.Hook.Device != "lan.10" {
						t.Errorf("%s: %s sits on %q", ph, c.Name, c.Hook.Device)
					}
					continue
				}
				for _, rule := range c.Rules {
					m, ok := rule[0].(Match)
					own := ok && (m.Field == IIfName || m.Field == OIfName) && m.Op == Equal && string(m.Value) == string(InterfaceKey("lan.10"))
					if c.Hook.Type == "nat" {
						marked, isMatch := rule[1].(Match)
						own = isMatch && marked.Field == CTMark && marked.Op == Equal
					}
					if !own {
						t.Errorf("%s: %s judges the packets of others: %s", ph, c.Name, rule)
					}
				}
			}
		}
		if !strings.Contains(Build(p).Dump(), "policy accept;") || strings.Contains(Build(p).Dump(), "policy drop;") {
			t.Errorf("%s: a base chain drops what it does not know", ph)
		}
	}
}

// TestInvariant01_EveryChainEndsInADrop: whatever comes from or goes to the PC's port
// meets an explicit end; no chain of ours relies on a policy or falls off its end.
func TestInvariant01_EveryChainEndsInADrop(t *testing.T) {
	for _, ph := range phases {
		for _, table := range Build(at(t, ph)).Tables {
			names := map[string]*Chain{}
			for _, c := range table.Chains {
				names[c.Name] = c
			}
			for _, c := range table.Chains {
				if c.Hook != nil && table.Family == "inet" {
					continue // sees every interface, picks ours
				}
				last := c.Rules[len(c.Rules)-1]
				if len(last) != 1 {
					t.Errorf("%s: %s ends in a rule with a condition: %s", ph, c.Name, last)
					continue
				}
				v, ok := last[0].(Verdict)
				if !ok || v.Kind == "accept" && !strings.HasPrefix(c.Name, "link-") && c.Hook == nil {
					t.Errorf("%s: %s ends in %s", ph, c.Name, last)
				}
				if v.Kind == "goto" && names[v.Chain] == nil {
					t.Errorf("%s: %s goes to %s, which is not there", ph, c.Name, v.Chain)
				}
			}
		}
	}
}

// Evidence is rate-limited; a drop never is, and each reason is counted before anything else.
func TestDropNeverDependsOnTheEvidence(t *testing.T) {
	for _, table := range Build(at(t, policy.Run)).Tables {
		for _, c := range table.Chains {
			for _, rule := range c.Rules {
				for i, s := range rule {
					if l, ok := s.(Log); ok && l.Rate > 0 && i != len(rule)-1 {
						t.Errorf("%s: a limited log is followed by %s", c.Name, rule[i+1:])
					}
				}
			}
			if strings.HasPrefix(c.Name, "no-") {
				if _, ok := c.Rules[0][0].(Count); !ok {
					t.Errorf("%s does not count first", c.Name)
				}
			}
		}
	}
}

// Every rule of the inet table that lets something pass names its phase's need:
// outside of a run no accept looks at the grants, outside of a boot none at HTTP.
func TestPhasesOpenOnlyWhatTheyName(t *testing.T) {
	for _, ph := range phases {
		text := Build(at(t, ph)).Dump()
		for word, only := range map[string][]policy.Phase{
			"@run":                  {policy.Run},
			"masquerade":            {policy.Run},
			"th dport 80 ct":        {policy.Boot},
			"th dport 69 ct":        {policy.Boot},
			"ct mark set":           {policy.Boot, policy.Attest, policy.Run, policy.Quarantine},
			"chain agent {\n\t\tct": {policy.Boot, policy.Attest, policy.Run, policy.Quarantine},
		} {
			want := false
			for _, o := range only {
				want = want || o == ph
			}
			if got := strings.Contains(text, word); got != want {
				t.Errorf("%s: %q in the ruleset is %v, want %v", ph, word, got, want)
			}
		}
	}
}

func TestNewSessionKnowsNoOldFlow(t *testing.T) {
	p := at(t, policy.Run)
	q, err := p.OpenBoot("bbbbbbbbbbbbbbbbbbbbbbbbbb", "52:54:00:12:34:56", "10.77.0.2")
	if err != nil {
		t.Fatal(err)
	}
	if flows(p.Generation) == flows(q.Generation) {
		t.Error("two sessions share a generation")
	}
	if strings.Contains(Build(q).Dump(), "0x00000203") {
		t.Error("the new session's rules know a mark of the old one")
	}
}

func TestTargetGrantedTwiceHasTheLongerTime(t *testing.T) {
	p := at(t, policy.Run)
	again := p.Grants[0]
	again.Left = time.Hour
	p.Grants = append(p.Grants, again)
	e := grants(p)
	if len(e) != 2 || e[0].Timeout != time.Hour {
		t.Errorf("elements %v", e)
	}
	p.Grants[1].Left = 0
	if e := grants(p); len(e) != 1 {
		t.Errorf("a grant without time is still an element: %v", e)
	}
}
