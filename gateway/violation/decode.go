// Package violation reads the evidence that the kernel hands over for dropped
// packets (NFLOG) and keeps the newest. The counters, not the evidence, say how
// many there were: evidence is rate-limited and may be lost under a flood. Only
// gatewayd may call it.
package violation

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"portcullis/gateway/ruleset"
)

// Violation is one dropped packet.
type Violation struct {
	Time        time.Time
	Direction   string // forward, input, output or link
	Reason      string // as in package ruleset
	Protocol    string // tcp, udp, icmp, arp, ip6, vlan, or the number
	Source      string // address, for non-IP frames the MAC
	Destination string
	Port        uint16 // destination port of TCP and UDP
}

// Packet is what Decode finds in a frame's payload.
type Packet struct {
	Protocol            string
	Source, Destination netip.Addr // invalid where the protocol has none
	Port                uint16
}

// Decode reads the network header that begins at b; etherType says which. It
// never fails: what is cut off or strange is left empty.
func Decode(etherType uint16, b []byte) Packet {
	switch etherType {
	case 0x0800:
		return decodeIPv4(b)
	case 0x86dd:
		return decodeIPv6(b)
	case 0x0806:
		return decodeARP(b)
	case 0x8100, 0x88a8:
		return Packet{Protocol: "vlan"}
	case 0x88cc:
		return Packet{Protocol: "lldp"}
	case 0x888e:
		return Packet{Protocol: "eapol"}
	}
	return Packet{Protocol: fmt.Sprintf("ether-0x%04x", etherType)}
}

// decodeIPv4 reads RFC 791 §3.1.
func decodeIPv4(b []byte) Packet {
	p := Packet{Protocol: "ip"}
	if len(b) < 20 || b[0]>>4 != 4 {
		return p
	}
	p.Protocol = ipProtocol(b[9])
	p.Source, p.Destination = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	header := int(b[0]&0x0f) * 4
	later := binary.BigEndian.Uint16(b[6:8])&0x1fff != 0 // not the first fragment: no ports
	if header >= 20 && !later {
		p.Port = destinationPort(p.Protocol, b, header)
	}
	return p
}

// decodeIPv6 reads RFC 8200 §3; extension headers are not followed.
func decodeIPv6(b []byte) Packet {
	p := Packet{Protocol: "ip6"}
	if len(b) < 40 || b[0]>>4 != 6 {
		return p
	}
	p.Source, p.Destination = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	if inner := ipProtocol(b[6]); inner == "tcp" || inner == "udp" {
		p.Port = destinationPort(inner, b, 40)
	}
	return p
}

// decodeARP reads RFC 826 for Ethernet and IPv4.
func decodeARP(b []byte) Packet {
	p := Packet{Protocol: "arp"}
	if len(b) < 28 || b[4] != 6 || b[5] != 4 {
		return p
	}
	p.Source, p.Destination = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	return p
}

func destinationPort(protocol string, b []byte, header int) uint16 {
	if (protocol != "tcp" && protocol != "udp") || len(b) < header+4 {
		return 0
	}
	return binary.BigEndian.Uint16(b[header+2:])
}

func ipProtocol(n byte) string {
	switch n {
	case 1:
		return "icmp"
	case 2:
		return "igmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "icmp6"
	case 132:
		return "sctp"
	}
	return fmt.Sprintf("ip-%d", n)
}

// ParsePrefix takes the direction and the reason out of a log prefix of the port of pc.
func ParsePrefix(prefix, pc string) (direction, reason string, ok bool) {
	parts := strings.Split(strings.TrimRight(prefix, "\x00 "), ":")
	if len(parts) != 3 || parts[0] != ruleset.PrefixOf(pc) {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// sourceMAC reads an Ethernet header as NFLOG gives it (destination, source, type).
func sourceMAC(header []byte) string {
	if len(header) < 14 {
		return ""
	}
	return net.HardwareAddr(header[6:12]).String()
}
