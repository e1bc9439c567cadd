package boot

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink messages.
var native = binary.NativeEndian

// SetLink brings an interface up or down.
func SetLink(index int, up bool) error {
	flags := uint32(0)
	if up {
		flags = unix.IFF_UP
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(body[4:], uint32(index))
	native.PutUint32(body[8:], flags)
	native.PutUint32(body[12:], unix.IFF_UP) // the flags to change
	return routeRequest("set link", unix.RTM_NEWLINK, 0, body)
}

// AddAddress gives an interface an IPv4 address with its prefix. One that it
// has already is not an error.
func AddAddress(index int, p netip.Prefix) error {
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0] = unix.AF_INET
	body[1] = byte(p.Bits())
	native.PutUint32(body[4:], uint32(index))
	a := p.Addr().As4()
	body = appendAttr(body, unix.IFA_LOCAL, a[:])
	body = appendAttr(body, unix.IFA_ADDRESS, a[:])
	return routeRequest("add address "+p.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

// AddDefaultRoute sends all other IPv4 traffic of the machine to gateway.
func AddDefaultRoute(index int, gateway netip.Addr) error {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = unix.AF_INET
	body[4] = unix.RT_TABLE_MAIN
	body[5] = unix.RTPROT_DHCP
	body[6] = unix.RT_SCOPE_UNIVERSE
	body[7] = unix.RTN_UNICAST
	g := gateway.As4()
	var oif [4]byte
	native.PutUint32(oif[:], uint32(index))
	body = appendAttr(body, unix.RTA_GATEWAY, g[:])
	body = appendAttr(body, unix.RTA_OIF, oif[:])
	return routeRequest("add default route by "+gateway.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

// appendAttr appends one attribute (struct rtattr), aligned to 4 bytes.
func appendAttr(b []byte, kind uint16, value []byte) []byte {
	b = native.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = native.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// routeRequest sends one request to the kernel and waits for its acknowledgement.
func routeRequest(what string, kind, flags uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer unix.Close(fd)
	msg := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = native.AppendUint16(msg, kind)
	msg = native.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	msg = native.AppendUint32(msg, 1) // sequence number
	msg = native.AppendUint32(msg, 0) // the kernel fills in the port
	msg = append(msg, body...)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n < unix.SizeofNlMsghdr+4 || native.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("%s: the kernel's answer is not an acknowledgement", what)
	}
	if code := int32(native.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 {
		return fmt.Errorf("%s: %w", what, unix.Errno(-code))
	}
	return nil
}
