// Package wire lays the cables of one lab: a namespace gw that stands for the
// Pi, with the PC's port and an uplink, and a namespace net that stands for the
// internet behind it. It is called by package lab only and needs root.
//
//	PC ──(pc0: tap, or a cable to a played PC)── gw ──(up0)──(eth0)── net
//	10.77.0.2      10.77.0.1/24        203.0.113.1/24   203.0.113.10/24
//
// With a Pi that is a machine of its own (Options.Pi), gw is no gateway: it holds
// nothing but two cables, by which the frames pass as they are, and has no
// address.
//
//	PC ──(pc0 = pi1)── eth1 Pi eth0 ──(pi0 = up0)──(eth0)── net
//
// Forwarding is switched on in gw for IPv4 and IPv6, and net has a route back to
// the PC: nothing but the firewall of gatewayd keeps the two apart, so that a
// test of the firewall tests the firewall.
package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"portcullis/internal/netns"
)

// Interfaces of the lab, inside their namespaces and therefore the same in every lab.
const (
	PCPort  = "pc0"  // gw: the PC's port
	Uplink  = "up0"  // gw: towards net
	NetPort = "eth0" // net: the only interface

	// With a Pi that is a machine: gw's taps for its two ports.
	PiUplink = "pi0" // Pi: eth0
	PiPCPort = "pi1" // Pi: eth1
)

// Addresses of the lab. 203.0.113.0/24 (RFC 5737) and 2001:db8::/32 (RFC 3849)
// are documentation prefixes; 10.77.0.0/24 is the project's default link.
var (
	PCLink    = netip.MustParsePrefix("10.77.0.1/24")
	PCAddress = netip.MustParseAddr("10.77.0.2")
	UpAddress = netip.MustParsePrefix("203.0.113.1/24")
	World     = netip.MustParsePrefix("203.0.113.10/24")
	PCLink6   = netip.MustParsePrefix("2001:db8:77::1/64")
	PC6       = netip.MustParseAddr("2001:db8:77::2")
	Up6       = netip.MustParsePrefix("2001:db8:113::1/64")
	World6    = netip.MustParsePrefix("2001:db8:113::10/64")
)

// Wire is the laid-out set of namespaces.
type Wire struct {
	Gateway *netns.Host
	Net     *netns.Host
	PC      *netns.Host // only where the PC is played by a program, nil with QEMU
}

// Names returns the namespaces of the lab name, whether they exist or not.
func Names(name string) []string {
	return []string{"pclab-" + name + "-gw", "pclab-" + name + "-net", "pclab-" + name + "-pc"}
}

// Options of New.
type Options struct {
	Name   string
	Played bool   // a namespace at the PC's port instead of a tap for QEMU
	MAC    string // of the played PC
	Pi     string // hardware address of the uplink of a Pi that is a machine; "" = gw is the Pi
}

// New makes the namespaces and cables. On failure nothing of them remains.
func New(o Options) (w *Wire, err error) {
	w = &Wire{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("wire: %w", err), w.Close())
			w = nil
		}
	}()
	names := Names(o.Name)
	if w.Gateway, err = netns.New(names[0]); err != nil {
		return w, err
	}
	if w.Net, err = netns.New(names[1]); err != nil {
		return w, err
	}
	for _, h := range []*netns.Host{w.Gateway, w.Net} {
		if err = quiet(h); err != nil {
			return w, err
		}
	}
	if o.Played {
		if w.PC, err = netns.New(names[2]); err != nil {
			return w, err
		}
		if err = quiet(w.PC); err != nil {
			return w, err
		}
		if err = netns.Veth(w.Gateway, PCPort, w.PC, NetPort); err != nil {
			return w, err
		}
		if err = w.PC.SetMAC(NetPort, o.MAC); err != nil {
			return w, err
		}
	} else if err = w.Gateway.Tap(PCPort); err != nil {
		return w, err
	}
	if err = netns.Veth(w.Gateway, Uplink, w.Net, NetPort); err != nil {
		return w, err
	}
	if o.Pi != "" {
		return w, w.cables(o.Pi)
	}
	return w, w.addresses()
}

// cables joins the Pi's ports with the PC's and with net's, and gives net its
// addresses. piMAC is the Pi's, for net to know it without asking.
func (w *Wire) cables(piMAC string) error {
	for _, c := range [][3]string{{"cable", PCPort, PiPCPort}, {"outside", Uplink, PiUplink}} {
		if err := w.Gateway.Tap(c[2]); err != nil {
			return err
		}
		if err := w.Gateway.Cable(c[0], c[1], c[2]); err != nil {
			return err
		}
	}
	if err := w.world(); err != nil {
		return err
	}
	return w.neighbour(w.Net, UpAddress.Addr(), piMAC, NetPort)
}

// quiet keeps a namespace from sending anything that nobody asked for: no
// link-local address and no router solicitation, so that a frame counted in the
// namespace net was caused by somebody.
func quiet(h *netns.Host) error {
	for _, kv := range [][2]string{
		{"net.ipv6.conf.default.addr_gen_mode", "1"},
		{"net.ipv6.conf.default.accept_ra", "0"},
		{"net.ipv6.conf.default.router_solicitations", "0"},
		{"net.ipv6.conf.default.dad_transmits", "0"},
		{"net.ipv6.conf.default.autoconf", "0"},
		// A multicast report for our own addresses is repeated at once and not up to
		// seconds later (RFC 3810 section 9.11), when frames are being counted.
		{"net.ipv6.conf.default.mldv1_unsolicited_report_interval", "10"},
		{"net.ipv6.conf.default.mldv2_unsolicited_report_interval", "10"},
	} {
		if err := h.Sysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	return nil
}

// world gives net its addresses and its way back to the PC.
func (w *Wire) world() error {
	for _, p := range []netip.Prefix{World, World6} {
		if err := w.Net.Address(NetPort, p); err != nil {
			return err
		}
	}
	if err := w.Net.Route(PCLink.Masked(), UpAddress.Addr()); err != nil {
		return err
	}
	return w.Net.Route(PCLink6.Masked(), Up6.Addr())
}

func (w *Wire) addresses() error {
	for _, a := range []struct {
		link   string
		prefix netip.Prefix
	}{{PCPort, PCLink}, {PCPort, PCLink6}, {Uplink, UpAddress}, {Uplink, Up6}} {
		if err := w.Gateway.Address(a.link, a.prefix); err != nil {
			return err
		}
	}
	if err := w.world(); err != nil {
		return err
	}
	if err := w.neighbours(); err != nil {
		return err
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := w.Gateway.Sysctl(key, "1"); err != nil {
			return err
		}
	}
	return nil
}

// neighbours tells gw and net each other's hardware address for ever, so that no
// ARP or neighbour discovery appears among the frames that net counts.
func (w *Wire) neighbours() error {
	gw, err := w.Gateway.MAC(Uplink)
	if err != nil {
		return err
	}
	world, err := w.Net.MAC(NetPort)
	if err != nil {
		return err
	}
	for _, n := range []struct {
		h         *netns.Host
		address   netip.Addr
		mac, link string
	}{
		{w.Gateway, World.Addr(), world, Uplink}, {w.Gateway, World6.Addr(), world, Uplink},
		{w.Net, UpAddress.Addr(), gw, NetPort}, {w.Net, Up6.Addr(), gw, NetPort},
	} {
		if err := w.neighbour(n.h, n.address, n.mac, n.link); err != nil {
			return err
		}
	}
	return nil
}

func (w *Wire) neighbour(h *netns.Host, address netip.Addr, mac, link string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := h.Run(ctx, "ip", "neigh", "replace", address.String(), "lladdr", mac, "dev", link, "nud", "permanent")
	return err
}

// Close removes the namespaces, their cables and whatever still runs inside.
func (w *Wire) Close() error {
	var errs []error
	for _, h := range []*netns.Host{w.PC, w.Net, w.Gateway} {
		if h != nil {
			errs = append(errs, h.Close())
		}
	}
	return errors.Join(errs...)
}

// Remove removes what a dead process left of the lab name.
func Remove(name string) error {
	var errs []error
	for _, n := range Names(name) {
		if _, err := os.Stat("/run/netns/" + n); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, netns.Remove(n))
	}
	return errors.Join(errs...)
}
