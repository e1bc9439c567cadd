package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portcullis/gateway/link"
	"portcullis/gateway/policy"
)

// NewWire is the machine's own conntrack and routing.
func NewWire(p policy.Port) (Wire, error) {
	// One socket for good: closing one waits for the kernel's clean-up of old rules.
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("server: conntrack: %w", err)
	}
	return machine{p, h}, nil
}

type machine struct {
	port      policy.Port
	conntrack *netlink.Handle
}

// Cut forgets the flows of the PC, so that a new boot that happens to use an old
// port number is not taken for the old flow. Their marks shut them out already.
func (m machine) Cut(pc netip.Addr) error {
	if _, err := m.conntrack.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, ofPC(pc)); err != nil {
		return fmt.Errorf("server: cut flows of %s: %w", pc, err)
	}
	return nil
}

type ofPC netip.Addr

// MatchConntrackFlow takes every flow that the PC or the Pi began between them.
func (a ofPC) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	for _, ip := range [][]byte{f.Forward.SrcIP, f.Forward.DstIP} {
		if x, ok := netip.AddrFromSlice(ip); ok && x.Unmap() == netip.Addr(a) {
			return true
		}
	}
	return false
}

// Route switches the routing of the PC's port, and the uplink's for the answers.
// The uplink is left as it is on the way back: others may route through it. An
// interface that is not there routes nothing; the next renewal finds it.
func (m machine) Route(on bool) error {
	on = on && m.port.Uplink != ""
	err := present(link.Forward(m.port.Interface, on))
	if on {
		err = errors.Join(err, present(link.Forward(m.port.Uplink, true)))
	}
	return err
}

// Wake sends the magic packet for the known PC.
func (m machine) Wake() error { return link.Wake(m.port.Interface, m.port.MAC) }

func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
