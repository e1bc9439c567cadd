package world

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// capture counts the frames that arrive on one interface. It sees them before
// any firewall or socket of the namespace does (packet(7)).
type capture struct{ fd int }

func newCapture(link string) (*capture, error) {
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("world: capture: %w", err)
	}
	proto := int(htons(unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("world: capture: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("world: capture: bind: %w", err)
	}
	return &capture{fd}, nil
}

// Close ends the capture with its process; a blocked read is not woken.
func (c *capture) Close() error { return unix.Close(c.fd) }

func (c *capture) run(w *World) error {
	b := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(c.fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		src, what := describe(b[:n])
		w.add("frame", src, what, func(r *Report) *uint64 { return &r.Frames })
	}
}

// describe names a frame for the report.
func describe(f []byte) (from, what string) {
	if len(f) < 14 {
		return "", fmt.Sprintf("%d bytes", len(f))
	}
	from = net.HardwareAddr(f[6:12]).String()
	kind := binary.BigEndian.Uint16(f[12:14])
	p := f[14:]
	switch {
	case kind == unix.ETH_P_IP && len(p) >= 20:
		src, _ := netip.AddrFromSlice(p[12:16])
		dst, _ := netip.AddrFromSlice(p[16:20])
		return from, fmt.Sprintf("ipv4 proto %d %s > %s", p[9], src, dst)
	case kind == unix.ETH_P_IPV6 && len(p) >= 40:
		src, _ := netip.AddrFromSlice(p[8:24])
		dst, _ := netip.AddrFromSlice(p[24:40])
		return from, fmt.Sprintf("ipv6 next %d %s > %s", p[6], src, dst)
	case kind == unix.ETH_P_ARP:
		return from, "arp"
	}
	return from, fmt.Sprintf("ethertype %#04x, %d bytes", kind, len(f))
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
