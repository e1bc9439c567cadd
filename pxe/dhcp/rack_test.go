package dhcp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"portcullis/internal/netns"
)

// Two pxeds in one namespace, each on a port of its own, hear and answer that port only.
func TestTwoPortsOfARackHearTheirOwnPC(t *testing.T) {
	hosts := netns.ForTest(t, "pi", "pca", "pcb")
	pi, ports := hosts[0], []string{"lan.10", "lan.20"}
	var servers, pcs []*ipv4.PacketConn
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(h *netns.Host, iface string, port int) *ipv4.PacketConn {
		var c *ipv4.PacketConn
		must(h.Do(func() (err error) { c, err = listen(iface, port); return err }))
		t.Cleanup(func() { c.Close() })
		return c
	}
	for i, port := range ports {
		pc := hosts[1+i]
		must(netns.Veth(pi, port, pc, "eth0"))
		must(pi.Address(port, netip.MustParsePrefix([]string{"10.77.1.1/24", "10.77.2.1/24"}[i])))
		must(pc.Address("eth0", netip.MustParsePrefix([]string{"10.77.1.2/24", "10.77.2.2/24"}[i])))
		servers = append(servers, open(pi, port, PortServer))
		pcs = append(pcs, open(pc, "eth0", 68))
	}
	heard := func(c *ipv4.PacketConn) string {
		buf := make([]byte, 64)
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, _, _, err := c.ReadFrom(buf)
		if err != nil {
			return ""
		}
		return string(buf[:n])
	}
	broadcast := func(c *ipv4.PacketConn, port int, text string) {
		_, err := c.WriteTo([]byte(text), nil, &net.UDPAddr{IP: net.IPv4bcast, Port: port})
		must(err)
	}
	for i := range ports {
		broadcast(pcs[i], PortServer, ports[i])
		if got, other := heard(servers[i]), heard(servers[1-i]); got != ports[i] || other != "" {
			t.Errorf("a request at %s: heard %q there and %q at the other", ports[i], got, other)
		}
		broadcast(servers[i], 68, "to "+ports[i])
		if got, other := heard(pcs[i]), heard(pcs[1-i]); got != "to "+ports[i] || other != "" {
			t.Errorf("an answer at %s: heard %q there and %q at the other", ports[i], got, other)
		}
	}
}
