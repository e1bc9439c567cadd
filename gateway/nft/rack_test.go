package nft

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/internal/netns"
)

// of is the policy of a port of several.
func of(t testing.TB, name, port string, to policy.Phase, grants ...string) *ruleset.Ruleset {
	t.Helper()
	p := phase(t, to, grants...)
	for i := range p.Grants {
		p.Grants[i].Left = time.Minute
	}
	p.Port.Name, p.Port.Interface = name, port
	return ruleset.Build(p)
}

// twoPorts is a namespace with the ports pc0 and pc1 and the static deny of a rack.
func twoPorts(t *testing.T) *netns.Host {
	t.Helper()
	pc, gw, _ := wire(t)
	if err := netns.Veth(pc, "eth1", gw, "pc1"); err != nil {
		t.Fatal(err)
	}
	if _, err := gw.Run(context.Background(), "nft", "-D", "port=pc*", "-f", "../../systemd/portcullis-deny-rack.nft"); err != nil {
		t.Fatal(err)
	}
	return gw
}

// Two ports in one namespace read, refill and put back their own tables only, owned or not.
func TestPortsHaveTablesOfTheirOwn(t *testing.T) {
	for name, unowned := range map[string]bool{"owned": false, "unowned": true} {
		t.Run(name, func(t *testing.T) {
			gw := twoPorts(t)
			a := open(t, gw, Options{PC: "a", Interface: "pc0", Unowned: unowned})
			b := open(t, gw, Options{PC: "b", Interface: "pc1", Unowned: unowned})
			for _, err := range []error{a.Apply(of(t, "a", "pc0", policy.Run, "203.0.113.10:80/tcp")), b.Apply(of(t, "b", "pc1", policy.Run, "203.0.113.10:81/tcp"))} {
				if err != nil {
					t.Fatal(err)
				}
			}
			before := list(t, gw)
			for _, k := range []*Kernel{a, b} {
				if drifted, err := changed(k); drifted || err != nil {
					t.Errorf("%s takes the other's tables for a change of its own: %v", k.opt.PC, err)
				}
				left, found, err := k.Grants()
				if err != nil || !found || len(left) != 1 {
					t.Errorf("%s reads the grants %v, %t, %v", k.opt.PC, left, found, err)
				}
				for target := range left {
					if want := map[string]uint16{"a": 80, "b": 81}[k.opt.PC]; target.Port != want {
						t.Errorf("%s reads the grant %s", k.opt.PC, target)
					}
				}
			}
			if err := a.SetRun(of(t, "a", "pc0", policy.Quarantine)); err != nil {
				t.Fatal(err)
			}
			if err := a.Apply(of(t, "a", "pc0", policy.Quarantine)); err != nil {
				t.Fatal(err)
			}
			if drifted, err := changed(b); drifted || err != nil {
				t.Errorf("b: drifted %t, %v", drifted, err)
			}
			part := func(text string) string {
				_, rest, _ := strings.Cut(text, "table inet portcullis.b {")
				rest, _, _ = strings.Cut(rest, "\n}")
				return plain(rest)
			}
			if after := list(t, gw); part(after) == "" || part(after) != part(before) {
				t.Errorf("b's table is not what it was:\n%s", after)
			}
			for _, wrong := range []*ruleset.Ruleset{of(t, "b", "pc1", policy.Idle), ruleset.Build(phase(t, policy.Idle))} {
				if err := a.Apply(wrong); !errors.Is(err, errOther) {
					t.Errorf("a ruleset of another port: %v", err)
				}
				if err := a.SetRun(wrong); !errors.Is(err, errOther) {
					t.Errorf("a run of another port: %v", err)
				}
			}
		})
	}
}

// TestInvariant01_StaticDenyEndsForTheOwnPortOnly: each gatewayd takes its own port out of the static
// deny, whatever form that has, and none opens another's.
func TestInvariant01_StaticDenyEndsForTheOwnPortOnly(t *testing.T) {
	gw := twoPorts(t)
	open1 := func() string {
		_, text, _ := strings.Cut(list(t, gw), "set open {")
		text, _, _ = strings.Cut(text, "}\n")
		return text
	}
	a := open(t, gw, Options{PC: "a", Interface: "pc0"})
	if strings.Contains(open1(), "pc0") {
		t.Error("the port is open before its tables are there")
	}
	for range 2 {
		if err := a.Apply(of(t, "a", "pc0", policy.Idle)); err != nil {
			t.Fatal(err)
		}
	}
	if s := open1(); !strings.Contains(s, `"pc0"`) || strings.Contains(s, "pc1") {
		t.Errorf("open ports: %s", s)
	}
	// The gatewayd of a single port beside a rack leaves the others denied, too.
	one := open(t, gw, Options{Interface: "pc1"})
	p := phase(t, policy.Idle)
	p.Port.Interface = "pc1"
	if err := one.Apply(ruleset.Build(p)); err != nil {
		t.Fatal(err)
	}
	if s := open1(); !strings.Contains(s, `"pc0"`) || !strings.Contains(s, `"pc1"`) {
		t.Errorf("open ports: %s", s)
	}
	// Loaded again, the deny is whole again until the owner's next transaction.
	if _, err := gw.Run(context.Background(), "nft", "-D", "port=pc*", "-f", "../../systemd/portcullis-deny-rack.nft"); err != nil {
		t.Fatal(err)
	}
	if s := open1(); strings.Contains(s, "pc0") {
		t.Errorf("open ports: %s", s)
	}
	// In the place of it somebody loads the file for one port: it is that port's, and nobody of a rack ends it.
	if _, err := gw.Run(context.Background(), "nft", "-D", "port=pc1", "-f", "../../systemd/portcullis-deny.nft"); err != nil {
		t.Fatal(err)
	}
	if err := a.Apply(of(t, "a", "pc0", policy.Attest)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(list(t, gw), "table inet portcullis-deny {") {
		t.Error("a port of a rack ended the deny of another")
	}
	b := open(t, gw, Options{PC: "b", Interface: "pc1"})
	if err := b.Apply(of(t, "b", "pc1", policy.Idle)); !errors.Is(err, ErrNoBackstop) {
		t.Errorf("without the deny of a rack: %v", err)
	}
	if !strings.Contains(list(t, gw), "table inet portcullis.b {") {
		t.Error("without the deny of a rack the own port is not shut either")
	}
}

// TestInvariant01_StaticDenyIsPutBack: whoever takes the static deny away, whole or what is in it, is told
// of and undone by any gatewayd of the rack, whose own tables the kernel keeps for it; each opens its own port.
func TestInvariant01_StaticDenyIsPutBack(t *testing.T) {
	gw := twoPorts(t)
	a, b := open(t, gw, Options{PC: "a", Interface: "pc0"}), open(t, gw, Options{PC: "b", Interface: "pc1"})
	for _, err := range []error{a.Apply(of(t, "a", "pc0", policy.Attest)), b.Apply(of(t, "b", "pc1", policy.Attest))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	restore := func(when string, k *Kernel, want bool) {
		t.Helper()
		if drifted, err := changed(k); drifted != want || err != nil {
			t.Errorf("%s: %s says drifted %t, %v", when, k.opt.PC, drifted, err)
		}
	}
	deny := func(text string) string {
		_, text, _ = strings.Cut(text, "table inet portcullis-deny {")
		text, _, _ = strings.Cut(text, "\n}")
		return text
	}
	counts, element := regexp.MustCompile(`packets \d+ bytes \d+|\n\s*elements = \{[^}]*\}|\s+$`), regexp.MustCompile(`"pc[01]"`)
	rules := func(text string) string {
		chains := strings.Split(counts.ReplaceAllString(deny(text), ""), "\n\tchain ")
		for i := range chains {
			chains[i] = strings.TrimSpace(chains[i])
		}
		slices.Sort(chains)
		return strings.Join(chains, "\n")
	}
	ports := func(text string) string {
		found := element.FindAllString(deny(text), -1)
		slices.Sort(found)
		return strings.Join(found, " ")
	}
	restore("untouched", a, false)
	before := list(t, gw)
	if n := strings.Count(rules(before), "drop"); n != 5 || ports(before) != `"pc0" "pc1"` {
		t.Fatalf("%d rules, %s:\n%s", n, ports(before), before)
	}
	for _, edit := range []string{
		"flush ruleset", "delete table inet portcullis-deny", "flush table inet portcullis-deny",
		"flush chain inet portcullis-deny forward; delete chain inet portcullis-deny forward",
		"flush chain inet portcullis-deny input",
		// What is added, too: whatever lets something past, closes something more, or does nothing yet.
		"insert rule inet portcullis-deny forward accept",
		`insert rule inet portcullis-deny input iifname "pc1" accept`,
		"insert rule inet portcullis-deny prerouting notrack",
		`add rule inet portcullis-deny output oifname "pc1" counter drop`,
		`add rule inet portcullis-deny forward iifname "x*" iifname != @open counter drop`,
		"add chain inet portcullis-deny mine { type filter hook forward priority -300; }",
		"add chain inet portcullis-deny mine; add rule inet portcullis-deny mine accept; insert rule inet portcullis-deny input jump mine",
		"add set inet portcullis-deny mine { type ifname; }",
		"add chain inet portcullis-deny output { policy drop; }",
		"add table inet portcullis-deny { flags dormant; }",
		"add table inet portcullis-deny { flags dormant; }; flush chain inet portcullis-deny forward; delete chain inet portcullis-deny forward",
		"flush chain inet portcullis-deny input; delete chain inet portcullis-deny input; add chain inet portcullis-deny input { type filter hook input priority 300; }",
		"flush table inet portcullis-deny; delete set inet portcullis-deny open; add set inet portcullis-deny open { type ifname; size 7; }",
	} {
		if _, err := gw.Run(context.Background(), "nft", edit); err != nil {
			t.Fatal(err)
		}
		restore(edit, a, true)
		if text := list(t, gw); rules(text) != rules(before) || !strings.HasPrefix(ports(text), `"pc0"`) {
			t.Errorf("%s: the static deny is\n%s", edit, deny(text))
		}
		if _, err := b.Restore(); err != nil { // a drift where the set had gone, too
			t.Error(err)
		}
		restore(edit+", again", a, false)
		restore(edit+", again", b, false)
		if text := list(t, gw); rules(text) != rules(before) || ports(text) != `"pc0" "pc1"` {
			t.Errorf("%s: with both, the static deny is\n%s", edit, deny(text))
		}
	}
	// What is loaded in its place counts, and only the own port is added to it.
	if _, err := gw.Run(context.Background(), "nft", "-D", "port=p*", "-f", "../../systemd/portcullis-deny-rack.nft"); err != nil {
		t.Fatal(err)
	}
	restore("loaded anew", a, true)
	if text := list(t, gw); !strings.Contains(deny(text), `"p*"`) || ports(text) != `"pc0"` {
		t.Errorf("loaded anew: the static deny is\n%s", deny(text))
	}
}

// TestInvariant01_StaticDenyThatOutlivedItsOwner: a table that stays without its owner is in the place of the
// static deny. No gatewayd makes it its own, by which it would keep the others out; it is put back.
func TestInvariant01_StaticDenyThatOutlivedItsOwner(t *testing.T) {
	gw := twoPorts(t)
	a := open(t, gw, Options{PC: "a", Interface: "pc0"})
	if err := a.Apply(of(t, "a", "pc0", policy.Attest)); err != nil {
		t.Fatal(err)
	}
	if !a.Owned() {
		t.Fatal("this kernel knows no tables that outlive their owner: Linux 6.9 or later is needed")
	}
	if _, err := gw.Run(context.Background(), "nft", "delete table inet portcullis-deny"); err != nil {
		t.Fatal(err)
	}
	other := open(t, gw, Options{})
	other.owner.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: ruleset.DenyTable, Flags: nftables.TableFlagOwner | nftables.TableFlagPersist})
	if err := errors.Join(other.owner.Flush(), other.Close()); err != nil {
		t.Fatal(err)
	}
	b := open(t, gw, Options{PC: "b", Interface: "pc1"})
	if err := b.Apply(of(t, "b", "pc1", policy.Idle)); !errors.Is(err, ErrNoBackstop) {
		t.Errorf("without the deny of a rack: %v", err)
	}
	if drifted, err := changed(a); !drifted || err != nil {
		t.Errorf("drifted %t, %v", drifted, err)
	}
	if err := b.Apply(of(t, "b", "pc1", policy.Idle)); err != nil {
		t.Error(err)
	}
	if drifted, err := changed(a); drifted || err != nil {
		t.Errorf("with both: drifted %t, %v", drifted, err)
	}
}

// TestInvariant01_APortGivenUpIsDeniedAgain: link.interface is another one after a restart. The old
// port belongs to nobody then, so the static deny has it again, in the transaction that opens the new one.
func TestInvariant01_APortGivenUpIsDeniedAgain(t *testing.T) {
	for name, unowned := range map[string]bool{"owned": false, "unowned": true} {
		t.Run(name, func(t *testing.T) { portGivenUp(t, unowned) })
	}
}

func portGivenUp(t *testing.T, unowned bool) {
	gw := twoPorts(t)
	ports := func() string {
		_, text, _ := strings.Cut(list(t, gw), "set open {")
		text, _, _ = strings.Cut(text, "}\n")
		found := regexp.MustCompile(`"pc[01]"`).FindAllString(text, -1)
		slices.Sort(found)
		return strings.Join(found, " ")
	}
	apply := func(k *Kernel, port string) {
		t.Helper()
		for range 2 {
			if err := k.Apply(of(t, k.opt.PC, port, policy.Idle)); err != nil {
				t.Fatal(err)
			}
		}
		if k.Owned() == unowned {
			t.Errorf("%s on %s: owned is %t", k.opt.PC, port, k.Owned())
		}
	}
	a := open(t, gw, Options{PC: "a", Interface: "pc0", Unowned: unowned})
	apply(a, "pc0")
	a.Close()
	a = open(t, gw, Options{PC: "a", Interface: "pc1", Unowned: unowned})
	apply(a, "pc1")
	if p := ports(); p != `"pc1"` {
		t.Errorf("moved from pc0 to pc1: open are %s", p)
	}
	if text := list(t, gw); strings.Contains(text, "ingress-pc0") || !strings.Contains(text, "ingress-pc1") {
		t.Errorf("the link table is\n%s", text)
	}
	if drifted, err := changed(a); drifted || err != nil {
		t.Errorf("drifted %t, %v", drifted, err)
	}
	// The static deny was loaded meanwhile, so that the old name is not there.
	a.Close()
	if _, err := gw.Run(context.Background(), "nft", "-D", "port=pc*", "-f", "../../systemd/portcullis-deny-rack.nft"); err != nil {
		t.Fatal(err)
	}
	a = open(t, gw, Options{PC: "a", Interface: "pc0", Unowned: unowned})
	apply(a, "pc0")
	if p := ports(); p != `"pc0"` {
		t.Errorf("moved back: open are %s", p)
	}
	// Another takes pc0 over before it is given up: it has it back when it sees the change.
	b := open(t, gw, Options{PC: "b", Interface: "pc0", Unowned: unowned})
	apply(b, "pc0")
	a.Close()
	a = open(t, gw, Options{PC: "a", Interface: "pc1", Unowned: unowned})
	apply(a, "pc1")
	if p := ports(); p != `"pc1"` {
		t.Errorf("given up while another has it: open are %s", p)
	}
	if _, err := b.Restore(); err != nil {
		t.Fatal(err)
	}
	if p := ports(); p != `"pc0" "pc1"` {
		t.Errorf("with both: open are %s", p)
	}
}

// TestInvariant01_APortThatNobodyWouldDenyIsKept: link.interface is another one after a restart, and no static
// deny has the old port. The tables of before stay to a byte, so that it stays shut, and the
// reason says what to do. With the old port it goes on.
func TestInvariant01_APortThatNobodyWouldDenyIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		pc      string
		unowned bool
		before  []string // what nft does to the static deny
	}{
		"one port":                          {"", false, []string{"delete table inet portcullis-deny"}},
		"one port, unowned":                 {"", true, []string{"delete table inet portcullis-deny"}},
		"a rack whose deny is gone":         {"a", false, []string{"delete table inet portcullis-deny"}},
		"a rack whose deny was opened":      {"a", false, []string{"insert rule inet portcullis-deny input accept"}},
		"a rack that denies other names":    {"a", false, []string{"-D", "port=other*", "-f", "../../systemd/portcullis-deny-rack.nft"}},
		"the rule was moved, one port":      {"", false, []string{"delete table inet portcullis-deny; insert rule inet portcullis input accept"}},
		"a rack, unowned, its deny is gone": {"a", true, []string{"delete table inet portcullis-deny"}},
	} {
		t.Run(name, func(t *testing.T) {
			gw := twoPorts(t)
			k := open(t, gw, Options{PC: c.pc, Interface: "pc0", Unowned: c.unowned})
			if err := k.Apply(of(t, c.pc, "pc0", policy.Attest)); err != nil {
				t.Fatal(err)
			}
			k.Close()
			if _, err := gw.Run(context.Background(), "nft", c.before...); err != nil {
				t.Fatal(err)
			}
			before := list(t, gw)
			k = open(t, gw, Options{PC: c.pc, Interface: "pc1", Unowned: c.unowned})
			err := k.Apply(of(t, c.pc, "pc1", policy.Idle))
			if !errors.Is(err, ErrPortChanged) || !strings.Contains(err.Error(), "there is pc0, wanted is pc1") {
				t.Fatalf("it says %v", err)
			}
			k.Close()
			if after := list(t, gw); plain(after) != plain(before) {
				t.Errorf("the tables were\n%s\nand are\n%s", before, after)
			}
			k = open(t, gw, Options{PC: c.pc, Interface: "pc0", Unowned: c.unowned})
			if err := k.Apply(of(t, c.pc, "pc0", policy.Idle)); err != nil && !errors.Is(err, ErrNoBackstop) {
				t.Errorf("with the old port: %v", err)
			}
			if k.Owned() == c.unowned {
				t.Errorf("with the old port: owned is %t", k.Owned())
			}
		})
	}
}
