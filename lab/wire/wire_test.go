package wire

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestOnlyTheFirewallKeepsThePCFromTheWorld shows that the wires alone let the
// PC's packets through, IPv4 and IPv6: a scenario that sees none behind the
// gateway has seen the firewall's work.
func TestOnlyTheFirewallKeepsThePCFromTheWorld(t *testing.T) {
	w, err := New(Options{Name: "wiretest", Played: true, MAC: "52:54:00:00:00:33"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, p := range []netip.Prefix{netip.PrefixFrom(PCAddress, 24), netip.PrefixFrom(PC6, 64)} {
		if err := w.PC.Address(NetPort, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.PC.Route(netip.MustParsePrefix("0.0.0.0/0"), PCLink.Addr()); err != nil {
		t.Fatal(err)
	}
	if err := w.PC.Route(netip.MustParsePrefix("::/0"), PCLink6.Addr()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, to := range []string{netip.AddrPortFrom(World.Addr(), 80).String(), netip.AddrPortFrom(World6.Addr(), 80).String()} {
		l, err := w.Net.Listen("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := w.PC.Dial(ctx, "tcp", to)
		if err != nil {
			t.Fatalf("%s is out of reach without a firewall: %v", to, err)
		}
		c.Close()
	}
	if got, err := w.PC.MAC(NetPort); err != nil || got != "52:54:00:00:00:33" {
		t.Errorf("the played PC's address is %s, %v", got, err)
	}
}

func TestRemoveTakesWhatADeadLabLeft(t *testing.T) {
	if _, err := New(Options{Name: "wireleft"}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Name: "wireleft"}); err == nil {
		t.Error("the same wires were laid twice")
	}
	if err := Remove("wireleft"); err != nil {
		t.Fatal(err)
	}
	for _, n := range Names("wireleft") {
		if _, err := os.Stat("/run/netns/" + n); err == nil {
			t.Errorf("%s is still there", n)
		}
	}
	if err := Remove("wireleft"); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}
