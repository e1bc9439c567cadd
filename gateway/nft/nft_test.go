package nft

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/internal/netns"
)

const session = "abcdefghijklmnopqrstuvwxyz"

func testPort() policy.Port {
	mac, _ := net.ParseMAC("52:54:00:12:34:56")
	return policy.Port{Interface: "pc0", Uplink: "up0", Address: netip.MustParsePrefix("10.77.0.1/24"), PC: netip.MustParseAddr("10.77.0.2"), MAC: mac,
		HTTPPort: 80, Agent: 7443, BanAfter: 5, BanWindow: time.Minute, BanFor: 10 * time.Minute, LogGroup: 77}
}

func phase(t testing.TB, to policy.Phase, grants ...string) policy.Policy {
	t.Helper()
	p := policy.Initial(testPort())
	if to == policy.Idle {
		return p
	}
	p, err := p.OpenBoot(session, "52:54:00:12:34:56", "10.77.0.2")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range grants {
		target, err := policy.ParseTarget(g)
		if err != nil {
			t.Fatal(err)
		}
		if p, _, err = p.AddGrant("task", target, time.Minute, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if p, err = p.SetPhase(session, to, time.Minute); err != nil {
		t.Fatal(err)
	}
	return p
}

// wire makes pc - gw - up with the PC's port pc0 and the uplink up0 in gw.
func wire(t testing.TB) (pc, gw, up *netns.Host) {
	t.Helper()
	hosts := netns.ForTest(t, "pc", "gw", "up")
	pc, gw, up = hosts[0], hosts[1], hosts[2]
	for _, err := range []error{
		netns.Veth(pc, "eth0", gw, "pc0"), netns.Veth(gw, "up0", up, "eth0"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return pc, gw, up
}

func open(t testing.TB, gw *netns.Host, opt Options) *Kernel {
	t.Helper()
	opt.NetNS = gw.FD()
	k, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// list is nft's own view of what we loaded.
func list(t testing.TB, h *netns.Host) string {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Fatal("nft is missing: install the package nftables")
	}
	out, err := h.Run(context.Background(), "nft", "list", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestEveryPhaseLoadsAndNftReadsIt(t *testing.T) {
	_, gw, _ := wire(t)
	k := open(t, gw, Options{})
	for _, to := range []policy.Phase{policy.Idle, policy.Boot, policy.Attest, policy.Run, policy.Quarantine} {
		if err := k.Apply(ruleset.Build(phase(t, to, "203.0.113.10:443/tcp"))); err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		if err := k.LinkBound(); err != nil {
			t.Fatalf("%s: link table: %v", to, err)
		}
		text := list(t, gw)
		if to == policy.Run {
			t.Log(text)
		}
		for _, want := range []string{"table inet portcullis {", "table netdev portcullis-link {", "type filter hook ingress device", `iifname "pc0" goto from-pc`} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: nft does not show %q:\n%s", to, want, text)
			}
		}
	}
}
