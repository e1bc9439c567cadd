package dhcp

import (
	"bytes"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/pxe/session"
)

// Ports of the service.
const (
	PortServer = 67
	PortClient = 68
	PortBINL   = 4011 // PXE 2.1 §2.4: boot server requests by unicast
)

// MaxPacket is the largest packet in bytes that is looked at: what an Ethernet frame carries.
const MaxPacket = 1500

// AgentClass is the vendor class (option 60) of the client in the image.
const AgentClass = "portcullis-agent/1"

// Class is who is asking.
type Class int

// Classes.
const (
	ClassNone Class = iota
	ClassHTTP       // UEFI HTTP Boot
	ClassPXE        // UEFI PXE
	ClassIPXE       // iPXE, on UEFI or BIOS
	ClassAgent
)

var classNames = [...]string{"none", "uefi-http", "pxe", "ipxe", "agent"}

func (c Class) String() string { return classNames[c] }

// Request is a packet after it was understood: a value that is made once and
// only read from then on.
type Request struct {
	Packet   *dhcpv4.DHCPv4
	Type     dhcpv4.MessageType
	Class    Class
	Arch     Arch
	Firmware session.Firmware // of the firmware classes
	From     netip.AddrPort
	Port     int // on which it came, PortServer or PortBINL
}

// FromFirmware tells whether the packet is the DISCOVER of any firmware, also
// one that is not served.
func (r Request) FromFirmware() bool {
	return r.Type == dhcpv4.MessageTypeDiscover && (r.Class == ClassHTTP || r.Class == ClassPXE || r.Class == ClassIPXE)
}

// Boots tells whether the packet is a boot request: a firmware's DISCOVER. It
// ends all trust in the machine (invariant 4).
func (r Request) Boots() bool {
	return r.Type == dhcpv4.MessageTypeDiscover && r.Firmware != "" && r.Port == PortServer
}

// Parse understands a packet, or says why it is not for us. It is pure.
func Parse(raw []byte, from netip.AddrPort, port int, p Policy) (Request, Reason) {
	r := Request{From: from, Port: port}
	if len(raw) > MaxPacket {
		return r, ReasonOversize
	}
	packet, err := dhcpv4.FromBytes(raw)
	if err != nil {
		return r, ReasonMalformed
	}
	r.Packet, r.Type = packet, packet.MessageType()
	if packet.OpCode != dhcpv4.OpcodeBootRequest {
		return r, ReasonRogueServer
	}
	if reason := checkSender(packet, p); reason != "" {
		return r, reason
	}
	if reason := checkType(&r); reason != "" {
		return r, reason
	}
	return r, classify(&r, p)
}

func checkSender(packet *dhcpv4.DHCPv4, p Policy) Reason {
	switch {
	// RFC 1700: 1 is Ethernet; the library's slice of chaddr is as long as hlen says.
	case packet.HWType != 1 || len(packet.ClientHWAddr) != 6:
		return ReasonHardware
	case !bytes.Equal(packet.ClientHWAddr, p.MAC[:]):
		return ReasonUnknownMAC
	case !packet.GatewayIPAddr.IsUnspecified():
		return ReasonRelayed
	}
	return ""
}

func checkType(r *Request) Reason {
	switch r.Type {
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeDecline,
		dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeInform:
	case dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak:
		return ReasonRogueServer
	default:
		return ReasonType
	}
	if r.Port == PortBINL && r.Type != dhcpv4.MessageTypeRequest {
		return ReasonPort
	}
	return ""
}

// classify finds the class and, for a firmware, the way it can boot.
func classify(r *Request, p Policy) Reason {
	class := string(r.Packet.Options.Get(dhcpv4.OptionClassIdentifier))
	class = strings.TrimRight(class, "\x00")
	switch {
	// iPXE calls itself PXEClient too, so its user class comes first.
	case hasUserClass(r.Packet.Options.Get(dhcpv4.OptionUserClassInformation), "iPXE"):
		r.Class = ClassIPXE
	case strings.HasPrefix(class, "HTTPClient"):
		r.Class = ClassHTTP
	case strings.HasPrefix(class, "PXEClient"):
		r.Class = ClassPXE
	case class == AgentClass:
		r.Class = ClassAgent
		return ""
	default:
		return classless(r.Type)
	}
	option := r.Packet.Options.Get(dhcpv4.OptionClientSystemArchitectureType)
	if option == nil {
		return orIgnorable(r.Type, ReasonArchMissing)
	}
	arch, ok := firstKnown(option)
	if !ok {
		return orIgnorable(r.Type, ReasonArchUnknown)
	}
	r.Arch = arch
	firmware, reason := way(r.Class, arch, p)
	r.Firmware = firmware
	return orIgnorable(r.Type, reason)
}

// classless lets messages through that carry no class by the RFC.
func classless(t dhcpv4.MessageType) Reason { return orIgnorable(t, ReasonClass) }

// orIgnorable forgives DECLINE and RELEASE what they need not say (RFC 2131 table 5).
func orIgnorable(t dhcpv4.MessageType, reason Reason) Reason {
	if t == dhcpv4.MessageTypeDecline || t == dhcpv4.MessageTypeRelease {
		return ""
	}
	return reason
}

// way maps class and architecture to a way of booting; the image is for x86-64.
func way(c Class, a Arch, p Policy) (session.Firmware, Reason) {
	x64 := a == ArchEFIX64 || a == ArchEFIBC
	switch {
	case c == ClassHTTP && a == ArchX64HTTP:
		return session.UEFIHTTP, ""
	case c == ClassPXE && x64:
		return session.UEFIPXE, ""
	case c == ClassIPXE && (x64 || a == ArchX64HTTP):
		return session.IPXE, ""
	case c == ClassIPXE && a == ArchBIOS && p.AllowBIOS:
		return session.BIOS, ""
	case c == ClassIPXE && a == ArchBIOS:
		return "", ReasonBIOS
	case c == ClassPXE && a == ArchBIOS:
		return "", ReasonBIOSNoIPXE
	}
	return "", ReasonArchUnfit
}

// hasUserClass tells whether option 77 names class: as RFC 3004 has it, length
// byte first, or raw as iPXE sends it.
func hasUserClass(option []byte, class string) bool {
	if string(option) == class {
		return true
	}
	for len(option) > 1 {
		n := int(option[0])
		if n == 0 || n > len(option)-1 {
			return false
		}
		if string(option[1:1+n]) == class {
			return true
		}
		option = option[1+n:]
	}
	return false
}
