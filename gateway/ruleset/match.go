package ruleset

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Numbers of protocols and header fields: linux/in.h, linux/if_ether.h, linux/if_packet.h.
const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17

	etherIPv4  = 0x0800
	etherARP   = 0x0806
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8
	etherIPv6  = 0x86dd
	etherEAPOL = 0x888e
	etherLLDP  = 0x88cc
	etherWake  = 0x0842

	packetHost      = 0
	packetBroadcast = 1
	packetMulticast = 2

	nfprotoIPv4 = 2

	// Bits of ct state: linux/netfilter/nf_conntrack_common.h.
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	stateNew         = 1 << 3

	directionReply = 1
)

var (
	accept = Verdict{Kind: "accept"}
	drop   = Verdict{Kind: "drop"}
)

func gotoChain(name string) Verdict { return Verdict{Kind: "goto", Chain: name} }

func iif(name string) Match {
	return Match{Field: IIfName, Op: Equal, Value: ifName(name), Shown: fmt.Sprintf("%q", name)}
}
func oif(name string) Match {
	return Match{Field: OIfName, Op: Equal, Value: ifName(name), Shown: fmt.Sprintf("%q", name)}
}

// InterfaceKey is an interface's name as an element of a set.
func InterfaceKey(name string) []byte { return ifName(name) }

// ifName is the kernel's form: 16 bytes, the rest zero.
func ifName(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

func number8(f Field, op Op, v uint8) Match {
	return Match{Field: f, Op: op, Value: []byte{v}, Shown: fmt.Sprint(v)}
}

func number16(f Field, op Op, v uint16) Match {
	return Match{Field: f, Op: op, Value: binary.BigEndian.AppendUint16(nil, v), Shown: fmt.Sprint(v)}
}

func ether(op Op, v uint16) Match {
	return Match{Field: EtherType, Op: op, Value: binary.BigEndian.AppendUint16(nil, v), Shown: fmt.Sprintf("0x%04x", v)}
}

func address(f Field, op Op, a netip.Addr) Match {
	return Match{Field: f, Op: op, Value: a.AsSlice(), Shown: a.String()}
}

func hardware(f Field, op Op, a net.HardwareAddr) Match {
	return Match{Field: f, Op: op, Value: a, Shown: a.String()}
}

// magic matches the beginning of the packet that wakes the machine a: six bytes of
// ones and its address.
func magic(a net.HardwareAddr) Match {
	return Match{Field: WakeHead, Op: Equal, Value: append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, a...), Shown: "ff:ff:ff:ff:ff:ff " + a.String()}
}

func state(bits uint32, words string) Match {
	return Match{Field: CTState, Mask: native32(bits), Op: NotEqual, Value: native32(0), Shown: words}
}

func mark(op Op, v uint32) Match {
	return Match{Field: CTMark, Op: op, Value: native32(v), Shown: fmt.Sprintf("0x%08x", v)}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

var (
	isIPv4    = Match{Field: NFProto, Op: Equal, Value: []byte{nfprotoIPv4}, Shown: "ipv4"}
	notIPv4   = Match{Field: NFProto, Op: NotEqual, Value: []byte{nfprotoIPv4}, Shown: "ipv4"}
	isTCP     = Match{Field: L4Proto, Op: Equal, Value: []byte{protoTCP}, Shown: "tcp"}
	isUDP     = Match{Field: L4Proto, Op: Equal, Value: []byte{protoUDP}, Shown: "udp"}
	isICMP    = Match{Field: L4Proto, Op: Equal, Value: []byte{protoICMP}, Shown: "icmp"}
	ctNew     = state(stateNew, "new")
	ctOld     = state(stateEstablished, "established")
	ctKnown   = state(stateEstablished|stateRelated, "established,related")
	ctReply   = Match{Field: CTDir, Op: Equal, Value: []byte{directionReply}, Shown: "reply"}
	anyHeader = Match{Field: EtherType, Mask: []byte{0, 0}, Op: Equal, Value: []byte{0, 0}, Shown: "0x0000"}
	fragment  = Match{Field: IPFrag, Mask: []byte{0x3f, 0xff}, Op: NotEqual, Value: []byte{0, 0}, Shown: "0"}
	multicast = Match{Field: IPDst, Mask: []byte{0xf0, 0, 0, 0}, Op: Equal, Value: []byte{224, 0, 0, 0}, Shown: "224.0.0.0"}
	syn       = Match{Field: TCPFlags, Mask: []byte{0x02}, Op: Equal, Value: []byte{0x02}, Shown: "0x02"}
	// A new TCP flow begins with SYN alone; the middle of an unknown flow is no beginning.
	synOnly = Match{Field: TCPFlags, Mask: []byte{0x17}, Op: Equal, Value: []byte{0x02}, Shown: "syn"}
)
