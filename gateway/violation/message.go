package violation

import (
	"encoding/binary"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of a log message: linux/netfilter/nfnetlink_log.h, enum nfulnl_attr_type.
const (
	attrPacketHeader = 1
	attrPayload      = 9
	attrPrefix       = 10
	attrHWHeader     = 16
)

// DecodeMessage reads one NFLOG message (without its netlink header) of the port of pc (""
// where there is one). ok is false when it is none of that port's or its attributes are broken. The family in front is that of the table:
// inet packets come as IPv4 or IPv6, those of the link table as netdev.
func DecodeMessage(b []byte, pc string, now time.Time) (v Violation, ok bool) {
	const genericHeader = 4 // struct nfgenmsg
	if len(b) < genericHeader {
		return Violation{}, false
	}
	attrs, err := netlink.UnmarshalAttributes(b[genericHeader:])
	if err != nil {
		return Violation{}, false
	}
	var etherType uint16
	var payload, header []byte
	for _, a := range attrs {
		switch a.Type &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER) {
		case attrPacketHeader:
			if len(a.Data) >= 2 {
				etherType = binary.BigEndian.Uint16(a.Data)
			}
		case attrPayload:
			payload = a.Data
		case attrPrefix:
			v.Direction, v.Reason, ok = ParsePrefix(string(a.Data), pc)
		case attrHWHeader:
			header = a.Data
		}
	}
	if !ok {
		return Violation{}, false
	}
	v.Time = now
	p := Decode(etherType, payload)
	v.Protocol, v.Port = p.Protocol, p.Port
	if v.Reason == "vlan" {
		v.Protocol = "vlan" // the kernel has taken the tag off the packet already
	}
	if p.Source.IsValid() {
		v.Source, v.Destination = p.Source.String(), p.Destination.String()
	} else {
		v.Source = sourceMAC(header)
	}
	return v, true
}
