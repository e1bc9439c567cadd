package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"portcullis/internal/config"
	"portcullis/internal/netns"
	"portcullis/internal/rpc"
)

// The ports of a rack in one namespace. The kernel of the tests may have no 802.1Q, so each
// is a cable of its own that has the name of a VLAN interface: for the tables and the
// routing that is the same, since the kernel takes the tag off before both. In a machine
// whose kernel has it (vlanEnv) they are VLANs of one trunk.
const (
	vlanEnv = "PORTCULLIS_TEST_VLAN"

	portA, portB = "lan.10", "lan.20"
	portNobody   = "lan.30" // has an address and a machine behind it, and no gatewayd
	trunk        = "lan"

	macB     = "52:54:00:12:34:57"
	ipB      = "10.77.2.2"
	gwB      = "10.77.2.1"
	ipNobody = "10.77.3.2"
)

// rack is two PCs, each with a gatewayd, beside a port that is nobody's and the trunk.
type rack struct {
	a, b   *rig
	nobody *netns.Host // at portNobody
	tagged *netns.Host // at the trunk
}

func newRack(t *testing.T) *rack {
	t.Helper()
	hosts := netns.ForTest(t, "pca", "pcb", "nobody", "tagged", "gw", "up")
	for _, h := range hosts {
		for _, name := range []string{"all", "default"} {
			if err := h.Sysctl("net.ipv6.conf."+name+".disable_ipv6", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	gw, up := hosts[4], hosts[5]
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k := &rack{nobody: hosts[2], tagged: hosts[3],
		a: rackRig(t, dir, "rack-a", portA, pcMAC, pcIP, hosts[0], gw, up),
		b: rackRig(t, dir, "rack-b", portB, macB, ipB, hosts[1], gw, up)}
	r := k.a
	r.must(netns.Veth(gw, "up0", up, "eth0"))
	r.must(gw.Address("up0", netip.MustParsePrefix("203.0.113.1/24")))
	r.must(up.Address("eth0", netip.MustParsePrefix(upIP+"/24")))
	r.must(up.Route(netip.MustParsePrefix("10.77.0.0/16"), netip.MustParseAddr("203.0.113.1")))
	for _, c := range []struct {
		pc                *netns.Host
		port, mac, own, g string
	}{{k.tagged, trunk, "52:54:00:12:34:59", "10.77.4.2", "10.77.4.1"}, {hosts[0], portA, pcMAC, pcIP, gwIP}, {hosts[1], portB, macB, ipB, gwB},
		{k.nobody, portNobody, "52:54:00:12:34:58", ipNobody, "10.77.3.1"}} {
		k.cable(c.pc, gw, c.port)
		r.must(c.pc.SetMAC("eth0", c.mac))
		r.must(gw.SetMAC(c.port, gwMAC))
		r.must(c.pc.Address("eth0", netip.MustParsePrefix(c.own+"/24")))
		r.must(gw.Address(c.port, netip.MustParsePrefix(c.g+"/24")))
		r.must(c.pc.Route(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(c.g)))
		r.forward(c.port)
	}
	r.forward("up0")
	return k
}

// cable joins a PC with a port of the Pi: by a cable, or through the switch at the other end of
// the trunk, whose access port takes the tag off.
func (k *rack) cable(pc, gw *netns.Host, port string) {
	k.a.t.Helper()
	if os.Getenv(vlanEnv) == "" || port == trunk {
		k.a.must(netns.Veth(pc, "eth0", gw, port))
		return
	}
	id, err := strconv.Atoi(strings.TrimPrefix(port, trunk+"."))
	k.a.must(err)
	k.a.must(netns.VLAN(gw, trunk, id, gw, port))
	k.a.must(netns.VLAN(k.tagged, "eth0", id, pc, "eth0"))
}

func rackRig(t *testing.T, dir, name, port, mac, ip string, pc, gw, up *netns.Host) *rig {
	t.Helper()
	r := &rig{t: t, pc: pc, gw: gw, up: up, dir: dir, banAfter: 1000, name: name, port: port, mac: mac, ip: ip,
		config: filepath.Join(dir, name+".yaml"), socket: filepath.Join(config.PCRunDir(filepath.Join(dir, "run"), name), rpc.GatewaySocket)}
	text := fmt.Sprintf(configText, dir, r.banAfter, "10m", "1m")
	group := map[string]string{portA: "77", portB: "78"}[port]
	text = strings.NewReplacer("pc0", port, "10.77.0.1/24", ip[:len(ip)-1]+"1/24", pcIP, ip, pcMAC, mac, "nflog_group: 77", "nflog_group: "+group).Replace(text)
	r.must(os.WriteFile(r.config, []byte(text), 0o644))
	t.Cleanup(r.stop)
	return r
}

// deny loads the static deny of the rack, as portcullis-deny.service does.
func (k *rack) deny() {
	k.a.t.Helper()
	if _, err := k.a.gw.Run(k.a.ctx(), "nft", "-D", "port="+trunk+"*", "-f", "../../systemd/portcullis-deny-rack.nft"); err != nil {
		k.a.t.Fatal(err)
	}
}

// listed is what nft shows.
func (k *rack) listed(what ...string) string {
	k.a.t.Helper()
	out, err := k.a.gw.Run(k.a.ctx(), "nft", append([]string{"list"}, what...)...)
	k.a.must(err)
	return string(out)
}

// refused starts a gatewayd that has to end by itself, and gives what it says.
func (r *rig) refused(args ...string) string {
	r.t.Helper()
	var said strings.Builder
	c := exec.Command(program, args...)
	c.Stderr = &said
	r.must(r.gw.Start(c))
	if err := c.Wait(); err == nil {
		r.t.Errorf("gatewayd %v ran", args)
	}
	return said.String()
}
