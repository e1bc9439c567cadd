package policy

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const (
	mac = "52:54:00:12:34:56"
	one = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	two = "bbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func idle() Policy {
	hw, _ := net.ParseMAC(mac)
	return Initial(Port{Interface: "eth1", Uplink: "eth0", Address: netip.MustParsePrefix("10.77.0.1/24"), PC: netip.MustParseAddr("10.77.0.2"), MAC: hw,
		HTTPPort: 80, Agent: 7443, BanAfter: 5, BanWindow: time.Minute, BanFor: time.Minute})
}

func boot(t *testing.T) Policy {
	t.Helper()
	p, err := idle().OpenBoot(one, mac, "10.77.0.2")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOpenBootRefuses(t *testing.T) {
	for name, c := range map[string][3]string{
		"short session":       {"aaaa", mac, "10.77.0.2"},
		"session in capitals": {strings.ToUpper(one), mac, "10.77.0.2"},
		"no session":          {"", mac, "10.77.0.2"},
		"another's MAC":       {one, "52:54:00:99:99:99", "10.77.0.2"},
		"no MAC":              {one, "", "10.77.0.2"},
		"another network":     {one, mac, "192.0.2.1"},
		"our address":         {one, mac, "10.77.0.1"},
		"network address":     {one, mac, "10.77.0.0"},
		"broadcast address":   {one, mac, "10.77.0.255"},
		"IPv6":                {one, mac, "::1"},
		"no address":          {one, mac, ""},
	} {
		p, err := idle().OpenBoot(c[0], c[1], c[2])
		if !errors.Is(err, ErrBadRequest) || p.Phase != Idle {
			t.Errorf("%s: phase %s, %v", name, p.Phase, err)
		}
	}
}

func TestOpenBootIsIdempotentWhileBooting(t *testing.T) {
	p := boot(t)
	again, err := p.OpenBoot(one, mac, "10.77.0.2")
	if err != nil || again.Generation != p.Generation {
		t.Errorf("generation %d then %d, %v", p.Generation, again.Generation, err)
	}
	// A session that has moved on is not opened again: a boot image served twice is a second boot.
	q, err := p.SetPhase(one, Quarantine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.OpenBoot(one, mac, "10.77.0.2"); !errors.Is(err, ErrOtherSession) {
		t.Errorf("a quarantined session was opened again: %v", err)
	}
}

func TestSetPhaseRefuses(t *testing.T) {
	p := boot(t)
	attest, err := p.SetPhase(one, Attest, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		from    Policy
		session string
		to      Phase
		ttl     time.Duration
		want    error
	}{
		"before any boot": {idle(), one, Attest, 0, ErrNotOpen},
		"another session": {p, two, Attest, 0, ErrOtherSession},
		"no session":      {p, "", Attest, 0, ErrOtherSession},
		"run without ttl": {p, one, Run, 0, ErrBadRequest},
		"run for ever":    {p, one, Run, 24 * time.Hour, ErrBadRequest},
		"negative ttl":    {p, one, Run, -time.Second, ErrBadRequest},
		"unknown phase":   {p, one, "open", 0, ErrBadRequest},
		"empty phase":     {p, one, "", 0, ErrBadRequest},
		"back to boot":    {attest, one, Boot, 0, ErrBadRequest},
	} {
		if _, err := c.from.SetPhase(c.session, c.to, c.ttl); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestFallbackEndsARunOnly(t *testing.T) {
	p := boot(t)
	for from, want := range map[Phase]Phase{Boot: Boot, Attest: Attest, Run: Attest, Quarantine: Quarantine, Idle: Idle} {
		q, err := p.SetPhase(one, from, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if got := q.Fallback(); got.Phase != want || got.RunFor != 0 {
			t.Errorf("%s falls back to %s, want %s", from, got.Phase, want)
		}
	}
}

func TestGenerationNeverReachesZero(t *testing.T) {
	p := idle()
	p.Generation = maxGeneration
	q, err := p.OpenBoot(one, mac, "10.77.0.2")
	if err != nil || q.Generation != 1 {
		t.Errorf("generation %d, %v", q.Generation, err)
	}
}

func TestGrantTargetsAreRefused(t *testing.T) {
	for _, s := range []string{
		"", "203.0.113.10", "203.0.113.10:80", "203.0.113.10/tcp", ":80/tcp", "example.org:443/tcp", "[2001:db8::1]:443/tcp", "2001:db8::1:443/tcp",
		"203.0.113.10:0/tcp", "203.0.113.10:65536/tcp", "203.0.113.10:080/tcp", "203.0.113.10:+80/tcp", "203.0.113.10:80/sctp", "203.0.113.10:80/TCP",
		"203.0.113.10:80/tcp/udp", "203.0.113.0/24:80/tcp", "0.0.0.0:80/tcp", "127.0.0.1:80/tcp", "169.254.1.1:80/tcp", "224.0.0.1:80/udp", "255.255.255.255:67/udp",
		"240.0.0.1:1/tcp", "0.1.2.3:1/tcp", "::ffff:203.0.113.10:80/tcp", "203.0.113.010:80/tcp", " 203.0.113.10:80/tcp", "203.0.113.10:80-90/tcp",
	} {
		if g, err := ParseTarget(s); !errors.Is(err, ErrGrant) {
			t.Errorf("%q was read as %v, %v", s, g, err)
		}
	}
}

func TestGrantsAreBounded(t *testing.T) {
	now := time.Now()
	target, err := ParseTarget("203.0.113.10:443/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		task string
		d    time.Duration
	}{"no task": {"", time.Minute}, "strange task": {"a b", time.Minute}, "too short": {"t", 0}, "too long": {"t", MaxGrant + 1}, "negative": {"t", -time.Hour}} {
		if _, _, err := boot(t).AddGrant(c.task, target, c.d, now); !errors.Is(err, ErrGrant) {
			t.Errorf("%s: %v", name, err)
		}
	}
	own, err := ParseTarget("10.77.0.1:22/tcp")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := boot(t).AddGrant("t", own, time.Minute, now); !errors.Is(err, ErrGrant) {
		t.Errorf("the Pi itself was granted: %v", err)
	}
	p := boot(t)
	for range MaxGrants {
		if p, _, err = p.AddGrant("t", target, time.Minute, now); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err = p.AddGrant("t", target, time.Minute, now); !errors.Is(err, ErrGrant) {
		t.Errorf("one more than %d grants: %v", MaxGrants, err)
	}
	ids := map[string]bool{}
	for _, g := range p.Grants {
		ids[g.ID] = true
	}
	if len(ids) != MaxGrants {
		t.Errorf("%d ids for %d grants", len(ids), MaxGrants)
	}
}

// TestInvariant04_GrantsEndWithTheirSession: what a task was granted is not the next boot's.
func TestInvariant04_GrantsEndWithTheirSession(t *testing.T) {
	target, _ := ParseTarget("203.0.113.10:443/tcp")
	if _, _, err := idle().AddGrant("t", target, time.Minute, time.Now()); !errors.Is(err, ErrNotOpen) {
		t.Errorf("a grant without a session: %v", err)
	}
	p, _, err := boot(t).AddGrant("t", target, time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.OpenBoot(one, mac, "10.77.0.2"); err != nil || len(again.Grants) != 1 {
		t.Errorf("a retransmitted request ended the grants: %v %v", again.Grants, err)
	}
	if next, err := p.OpenBoot(two, mac, "10.77.0.2"); err != nil || len(next.Grants) != 0 {
		t.Errorf("the next session has %v, %v", next.Grants, err)
	}
}

func TestPolicyIsAValue(t *testing.T) {
	target, _ := ParseTarget("203.0.113.10:443/tcp")
	p, g, err := boot(t).AddGrant("t", target, time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	q, removed, ok := p.RemoveGrant(g.ID)
	if !ok || removed.ID != g.ID || len(q.Grants) != 0 || len(p.Grants) != 1 {
		t.Errorf("removing changed the old value: %v then %v", p.Grants, q.Grants)
	}
	if _, _, ok := p.RemoveGrant("g-none"); ok {
		t.Error("a grant that is not there was removed")
	}
}

func FuzzParseGrant(f *testing.F) {
	for _, s := range []string{"203.0.113.10:443/tcp", "198.51.100.1:53/udp", "a:1/tcp", "1.2.3.4:99999/udp", "[::1]:80/tcp", "/", ":/", "1.1.1.1:1/tcp\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, err := ParseTarget(s)
		if err != nil {
			if !errors.Is(err, ErrGrant) {
				t.Fatalf("%q: refused without the typed reason: %v", s, err)
			}
			return
		}
		if g.String() != s {
			t.Fatalf("%q was read as %s", s, g)
		}
		if g.Port == 0 || !g.Address.Is4() || g.Protocol != "tcp" && g.Protocol != "udp" {
			t.Fatalf("%q gave %+v", s, g)
		}
	})
}

// A renewed run or the end of the boot that was on its way comes too late.
func TestQuarantineEndsWithTheNextSessionOnly(t *testing.T) {
	p, err := boot(t).SetPhase(one, Quarantine, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []Phase{Run, Attest, Idle, Boot} {
		if next, err := p.SetPhase(one, to, time.Minute); !errors.Is(err, ErrOtherSession) || next.Phase != Quarantine {
			t.Errorf("%s: %v, now %s", to, err, next.Phase)
		}
	}
}
