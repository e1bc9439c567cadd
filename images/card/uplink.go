package card

import (
	"fmt"
	"net/netip"

	"gopkg.in/yaml.v3"
)

// maxDNS is how many name servers a resolver asks (resolv.conf(5), MAXNS).
const maxDNS = 3

func (r *seedReader) uplink(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		if n.Value != "dhcp" {
			r.fail(n.Line, "uplink", fmt.Sprintf("%.40q is not known", n.Value), "write 'dhcp', or address, gateway and dns below it")
		}
		return
	}
	u := &r.seed.Uplink
	got := r.section("uplink.", n, map[string]func(*yaml.Node){
		"address": func(n *yaml.Node) {
			p, err := netip.ParsePrefix(n.Value)
			if err != nil || !p.Addr().Is4() || p.Bits() == 0 {
				r.fail(n.Line, "uplink.address", fmt.Sprintf("%.40q is no IPv4 address with its length", n.Value), "write for instance 192.168.1.20/24")
				return
			}
			u.Address = p
		},
		"gateway": func(n *yaml.Node) { u.Gateway = r.addr(n, "uplink.gateway") },
		"dns": func(n *yaml.Node) {
			if n.Kind != yaml.SequenceNode || len(n.Content) > maxDNS {
				r.fail(n.Line, "uplink.dns", fmt.Sprintf("is not a list of at most %d addresses", maxDNS), "write for instance [192.168.1.1]")
				return
			}
			for _, d := range n.Content {
				u.DNS = append(u.DNS, r.addr(d, "uplink.dns"))
			}
		},
	})
	switch {
	case !got["address"]:
		r.fail(n.Line, "uplink.address", "is missing", "add it, or write 'uplink: dhcp'")
	case u.Address.IsValid() && u.Gateway.IsValid() && (!u.Address.Contains(u.Gateway) || u.Gateway == u.Address.Addr()):
		r.fail(n.Line, "uplink.gateway", fmt.Sprintf("%s is not another address of %s", u.Gateway, u.Address.Masked()), "")
	}
}

func (r *seedReader) addr(n *yaml.Node, key string) netip.Addr {
	a, err := netip.ParseAddr(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode || !a.Is4() {
		r.fail(n.Line, key, fmt.Sprintf("%.40q is no IPv4 address", n.Value), "")
		return netip.Addr{}
	}
	return a
}
