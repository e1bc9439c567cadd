package probe

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	"portcullis/attestserver/protocol"
)

// Net lists the network interfaces of the first network namespace, its routes,
// its packet filter, and the sockets that wait for strangers or see every frame.
//
// It finds a second network card, a tunnel, another way out, a sniffer, a radio, a bridge that the boot interface
// was put into, a changed MAC, and a boot interface that was moved elsewhere.
//
// It cannot see an interface in another network namespace (op hw finds its
// hardware), nor a management engine that shares the card.
type Net struct{ Host }

// Name implements protocol.Probe.
func (*Net) Name() string { return protocol.OpNet }

// Run implements protocol.Probe.
func (p *Net) Run(_ context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	if err := protocol.CheckNone(params); err != nil {
		return protocol.Output{}, err
	}
	links, err := p.Links()
	if err != nil {
		return protocol.Output{}, err
	}
	if len(links) > protocol.MaxLinks {
		return protocol.Output{}, fmt.Errorf("%d network interfaces", len(links))
	}
	for i := range links {
		links[i].Device = p.device(links[i].Name)
	}
	slices.SortFunc(links, func(a, b protocol.Link) int { return a.Index - b.Index })
	d := protocol.NetData{Links: links, Packet: p.packetSockets(), Raw: p.rawSockets(), Listeners: p.listeners(), Radios: p.radios()}
	b, err := read(p.Proc, "net/route")
	if err != nil {
		return protocol.Output{}, err
	}
	if d.Routes, err = parseRoutes(string(b)); err != nil {
		return protocol.Output{}, err
	}
	more, err := p.routes6()
	if err != nil {
		return protocol.Output{}, err
	}
	if d.Routes = append(d.Routes, more...); len(d.Routes) > protocol.MaxRoutes {
		return protocol.Output{}, fmt.Errorf("%d routes", len(d.Routes))
	}
	if d.Rules, err = p.Rules(); err != nil {
		return protocol.Output{}, err
	}
	if d.Filters, d.FilterRules, err = p.filters(); err != nil {
		return protocol.Output{}, err
	}
	return answer(key, p.Name(), params, d)
}

// device is the bus address of the hardware behind an interface: for a virtio
// card that of the PCI function it sits on.
func (h Host) device(name string) string {
	path, err := filepath.EvalSymlinks(filepath.Join(h.Sys, "class/net", name, "device"))
	if err != nil {
		return ""
	}
	if sub, err := os.Readlink(filepath.Join(path, "subsystem")); err == nil && filepath.Base(sub) == "virtio" {
		path = filepath.Dir(path)
	}
	return filepath.Base(path)
}

// netlinkLinks asks the kernel for its interfaces (rtnetlink(7), RTM_GETLINK).
func netlinkLinks() ([]protocol.Link, error) {
	list, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var out []protocol.Link
	for _, l := range list {
		a := l.Attrs()
		link := protocol.Link{
			Name: a.Name, Index: a.Index, Kind: l.Type(), MAC: a.HardwareAddr.String(), Permanent: a.PermHWAddr.String(),
			Loopback: a.Flags&net.FlagLoopback != 0, Up: a.Flags&net.FlagUp != 0,
			Carrier: a.OperState == netlink.OperUp, Master: a.MasterIndex, Promisc: a.Promisc != 0,
		}
		if link.Kind == "device" { // the library's word for no kind at all
			link.Kind = ""
		}
		out = append(out, link)
	}
	return out, nil
}
