package hpcinit

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/images/deb"
	"portcullis/internal/netns"
	"portcullis/rootfs/boot"
)

// wire makes a PC with the given interfaces, each with a cable to one host
// that has the gateway's address on the first of them.
func wire(t *testing.T, names ...string) (pc, gw *netns.Host) {
	t.Helper()
	hosts := netns.ForTest(t, "pc", "gw")
	pc, gw = hosts[0], hosts[1]
	for _, name := range names {
		if err := netns.Veth(pc, name, gw, "to-"+name); err != nil {
			t.Fatal(err)
		}
		if err := pc.Down(name); err != nil {
			t.Fatal(err)
		}
	}
	if len(names) > 0 {
		if err := gw.Address("to-"+names[0], netip.MustParsePrefix("10.77.0.1/24")); err != nil {
			t.Fatal(err)
		}
	}
	return pc, gw
}

// connect runs the search on pc. A veth has no device, so the test says what is wired.
func connect(t *testing.T, pc *netns.Host, limits NetworkLimits) (link boot.Link, lease Lease, err error) {
	t.Helper()
	n := newNetwork(limits)
	n.wired = func(l boot.Link) bool { return l.Ethernet }
	n.ask = func(ctx context.Context, l boot.Link) (lease Lease, err error) {
		// The question runs on a goroutine of its own, which is not in the PC's namespace.
		e := pc.Do(func() error { lease, err = acquire(ctx, l); return nil })
		if e != nil {
			t.Error(e)
		}
		return lease, err
	}
	if e := pc.Do(func() error { link, lease, err = n.connect(t.Context()); return nil }); e != nil {
		t.Fatal(e)
	}
	return link, lease, err
}

var testLimits = NetworkLimits{Carrier: 2 * time.Second, Lease: 8 * time.Second}

func links(t *testing.T, pc *netns.Host) map[string]boot.Link {
	t.Helper()
	out := map[string]boot.Link{}
	err := pc.Do(func() error {
		ls, err := boot.Links()
		for _, l := range ls {
			out[l.Name] = l
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestNetworkFindsTheGateway(t *testing.T) {
	pc, gw := wire(t, "eth0")
	g := &fakeGateway{t: t}
	g.serveDHCP(gw, "to-eth0")
	start := time.Now()
	link, lease, err := connect(t, pc, testLimits)
	if err != nil || link.Name != "eth0" || lease.Session != testSession {
		t.Fatalf("%+v, %+v, %v", link, lease, err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v", took)
	}
	// The first packets may be lost in the moment in which the carrier comes.
	if got := g.requests(); len(got) > 4 || got[len(got)-1] != dhcpv4.MessageTypeRequest {
		t.Errorf("the gateway saw %v", got)
	}
	serveFiles(t, gw, map[string][]byte{"manifest.dsse": []byte("x")})
	err = pc.Do(func() error {
		b, err := fetchSmall(t.Context(), Source{lease.HTTP, lease.Path}, "manifest.dsse", 10, quick)
		if string(b) != "x" {
			t.Errorf("%q", b)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	out, err := pc.Run(t.Context(), "ip", "-o", "route", "show", "default")
	if err != nil || !strings.HasPrefix(string(out), "default via 10.77.0.1 dev eth0") {
		t.Errorf("%s, %v", out, err)
	}
	if !links(t, pc)["lo"].Up {
		t.Error("lo is down")
	}
}

// Only the interface that leads to the gateway stays up.
func TestNetworkOfSeveralInterfaces(t *testing.T) {
	pc, gw := wire(t, "eth2", "eth0", "eth1", "eth3")
	if err := gw.Down("to-eth3"); err != nil { // no carrier
		t.Fatal(err)
	}
	(&fakeGateway{t: t}).serveDHCP(gw, "to-eth2")
	link, _, err := connect(t, pc, testLimits)
	if err != nil || link.Name != "eth2" {
		t.Fatalf("%+v, %v", link, err)
	}
	for name, l := range links(t, pc) {
		if want := name == "eth2" || name == "lo"; l.Up != want {
			t.Errorf("%s is up: %v", name, l.Up)
		}
	}
}

// A card whose driver is still loading, and a cable that is plugged in late.
func TestNetworkThatComesLate(t *testing.T) {
	pc, gw := wire(t)
	go func() {
		time.Sleep(200 * time.Millisecond)
		if err := netns.Veth(pc, "eth0", gw, "to-eth0"); err != nil {
			t.Error(err)
			return
		}
		gw.Down("to-eth0")
		gw.Address("to-eth0", netip.MustParsePrefix("10.77.0.1/24"))
		(&fakeGateway{t: t}).serveDHCP(gw, "to-eth0")
		time.Sleep(200 * time.Millisecond)
		gw.Up("to-eth0")
	}()
	link, _, err := connect(t, pc, testLimits)
	if err != nil || link.Name != "eth0" {
		t.Fatalf("%+v, %v", link, err)
	}
}

// The carrier goes in the middle of the question and comes back.
func TestNetworkThatFlaps(t *testing.T) {
	pc, gw := wire(t, "eth0")
	var asked atomic.Int32
	g := &fakeGateway{t: t}
	g.edit = func(p, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		if asked.Add(1) > 1 {
			return r
		}
		go func() {
			gw.Down("to-eth0")
			time.Sleep(300 * time.Millisecond)
			gw.Up("to-eth0")
			gw.Address("to-eth0", netip.MustParsePrefix("10.77.0.1/24"))
		}()
		return nil
	}
	g.serveDHCP(gw, "to-eth0")
	if _, lease, err := connect(t, pc, testLimits); err != nil || lease.Session != testSession {
		t.Fatalf("%+v, %v", lease, err)
	}
}

func TestNetworkFailures(t *testing.T) {
	short := NetworkLimits{Carrier: 300 * time.Millisecond, Lease: 1500 * time.Millisecond}
	for name, c := range map[string]struct {
		interfaces []string
		prepare    func(t *testing.T, gw *netns.Host)
		reason     boot.Reason
		detail     string
	}{
		"no interface": {nil, func(*testing.T, *netns.Host) {}, ReasonNoInterface, "driver"},
		"no cable":     {[]string{"eth0"}, func(t *testing.T, gw *netns.Host) { gw.Down("to-eth0") }, ReasonNoCarrier, "1 wired"},
		"no server":    {[]string{"eth0"}, func(*testing.T, *netns.Host) {}, ReasonNoLease, "no answer on eth0"},
		"server without session": {[]string{"eth0"}, func(t *testing.T, gw *netns.Host) {
			(&fakeGateway{t: t, edit: func(p, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
				r.Options.Del(optionSession)
				return r
			}}).serveDHCP(gw, "to-eth0")
		}, ReasonNoLease, "session"},
		"server that refuses": {[]string{"eth0"}, func(t *testing.T, gw *netns.Host) {
			(&fakeGateway{t: t, edit: func(p, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
				if p.MessageType() == dhcpv4.MessageTypeRequest {
					r.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
				}
				return r
			}}).serveDHCP(gw, "to-eth0")
		}, ReasonNoLease, "nak"},
	} {
		t.Run(name, func(t *testing.T) {
			pc, gw := wire(t, c.interfaces...)
			c.prepare(t, gw)
			start := time.Now()
			_, _, err := connect(t, pc, short)
			if boot.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.detail) {
				t.Errorf("%v, want %s with %q", err, c.reason, c.detail)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
			for name, l := range links(t, pc) {
				if name != "lo" && l.Up {
					t.Errorf("%s was left up", name)
				}
			}
		})
	}
}

// Lost packets, a NAK and answers of somebody else in between cost time only.
func TestLeaseOverABadLink(t *testing.T) {
	pc, gw := wire(t, "eth0")
	var n [2]int
	g := &fakeGateway{t: t}
	g.edit = func(p, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		kind := 0
		if p.MessageType() == dhcpv4.MessageTypeRequest {
			kind = 1
		}
		switch n[kind]++; [2]int{kind, n[kind]} {
		case [2]int{0, 1}, [2]int{1, 1}: // a lost OFFER, a lost ACK
			return nil
		case [2]int{0, 2}: // somebody else's transaction
			r.TransactionID[0] ^= 1
		case [2]int{1, 2}: // the gateway has restarted and does not know the offer
			r.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
		}
		return r
	}
	g.serveDHCP(gw, "to-eth0")
	_, lease, err := connect(t, pc, testLimits)
	if err != nil || lease.Session != testSession {
		t.Fatalf("%+v, %v", lease, err)
	}
	// lost, foreign, good, REQUEST lost, REQUEST refused, good, REQUEST good
	if got := fmt.Sprint(g.requests()); !strings.Contains(got, "REQUEST REQUEST DISCOVER") || strings.Count(got, "DISCOVER") < 4 {
		t.Errorf("the gateway saw %s", got)
	}
}

// An independent server agrees about the wire format.
func TestLeaseFromDnsmasq(t *testing.T) {
	tool, err := deb.NeedTool("dnsmasq", "dnsmasq-base")
	if err != nil {
		t.Fatal(err)
	}
	pc, gw := wire(t, "eth0")
	c := exec.Command(tool, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--log-facility=-", "--leasefile-ro", "--user=root",
		"--interface=to-eth0", "--bind-interfaces", "--dhcp-range=10.77.0.2,10.77.0.2,255.255.255.0,12h",
		"--dhcp-vendorclass=set:agent,"+VendorClass,
		"--dhcp-option=tag:agent,option:router,10.77.0.1",
		"--dhcp-option=tag:agent,224,"+testSession,
		"--dhcp-option=tag:agent,67,http://10.77.0.1:8080/b/"+testSession+"/")
	if err := gw.Start(c); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	_, lease, err := connect(t, pc, testLimits)
	if err != nil || lease.HTTP.String() != "10.77.0.1:8080" || lease.Address.String() != "10.77.0.2/24" || lease.Session != testSession {
		t.Errorf("%+v, %v", lease, err)
	}
}

// The rule that tells a cable from a bridge or a wireless card: nothing virtual
// may count. The interface's name is one that no card of this machine has.
func TestVirtualLinksAreNotWired(t *testing.T) {
	pc, _ := wire(t, "veth-of-test")
	l := links(t, pc)["veth-of-test"]
	if !l.Ethernet || isWired(l) {
		t.Errorf("%+v counts as a card with a cable", l)
	}
	if isWired(boot.Link{Name: "eth0"}) {
		t.Error("a link without Ethernet framing counts as a card")
	}
}
