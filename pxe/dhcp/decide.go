// Package dhcp answers the PC's DHCP and PXE requests on its cable. Parse and
// Decide are pure: packet → request → reply or a typed reason why not; Service
// owns the sockets. It is the only DHCP server on the link and knows one client.
package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/images/manifest"
	"portcullis/pxe/session"
)

// LeaseTime is what the PC is given the address for.
const LeaseTime = 12 * time.Hour

// optionSession is the site-specific option (RFC 3942) that tells the client in
// the image which boot session it is.
const optionSession = dhcpv4.GenericOptionCode(224)

// optionAgentPort tells that client where attestd listens: a port in network order.
const optionAgentPort = dhcpv4.GenericOptionCode(225)

// optionIPXE carries iPXE's own settings (option 175); feature 176 there means
// "do not wait for ProxyDHCP offers", which saves it two seconds.
const optionIPXE = dhcpv4.GenericOptionCode(175)

// Policy is what the operator decided.
type Policy struct {
	MAC       [6]byte      // of the one PC
	Server    netip.Prefix // ours on the link; IPv4
	Lease     netip.Addr   // the PC's; IPv4, inside Server
	BaseURL   string       // http://10.77.0.1, with :port where it is not 80
	AgentPort uint16       // of attestd, told to the client in the image
	AllowBIOS bool
}

// View is what Decide knows about the current boot session.
type View struct {
	ID       string
	Firmware session.Firmware
	Live     bool // artefacts may be served
	Claimed  bool // the booted machine holds the lease
}

// Decision is a reply and where it goes, or a reason for silence.
type Decision struct {
	Reply  *dhcpv4.DHCPv4
	Name   string // offer, ack or nak
	To     netip.AddrPort
	Reason Reason
}

func drop(r Reason) Decision { return Decision{Reason: r} }

// Decide answers one request, given the session that is current. It is pure.
func Decide(r Request, p Policy, v View) Decision {
	switch r.Type {
	case dhcpv4.MessageTypeDiscover:
		return discover(r, p, v)
	case dhcpv4.MessageTypeRequest:
		if r.Port == PortBINL {
			return bootServer(r, p, v)
		}
		return request(r, p, v)
	case dhcpv4.MessageTypeInform:
		return inform(r, p, v)
	case dhcpv4.MessageTypeDecline:
		return drop(ReasonDeclined)
	case dhcpv4.MessageTypeRelease:
		return drop(ReasonReleased)
	}
	return drop(ReasonType)
}

func discover(r Request, p Policy, v View) Decision {
	if reason := fits(r, v); reason != "" {
		return drop(reason)
	}
	return answer(r, p, dhcpv4.MessageTypeOffer, lease(p), boot(r, p, v))
}

// fits tells whether the live session is the one that r can belong to.
func fits(r Request, v View) Reason {
	switch {
	case !v.Live:
		return ReasonNoSession
	case r.Class != ClassAgent && r.Firmware != v.Firmware:
		return ReasonOtherFirmware
	}
	return ""
}

// request tells the states of RFC 2131 §4.3.2 apart by what is in the packet.
func request(r Request, p Policy, v View) Decision {
	server := address(r.Packet.Options.Get(dhcpv4.OptionServerIdentifier))
	wanted := address(r.Packet.Options.Get(dhcpv4.OptionRequestedIPAddress))
	holds := address(r.Packet.ClientIPAddr.To4())
	switch {
	case server.IsValid() && server != p.Server.Addr():
		return drop(ReasonRogueServer)
	case holds.IsValid() && !holds.IsUnspecified(): // renewing, rebinding
		if holds != p.Lease || !v.Live && !v.Claimed {
			return nak(r, p)
		}
		if v.Claimed { // the boot is over: the address and nothing else
			return answer(r, p, dhcpv4.MessageTypeAck, lease(p))
		}
	case wanted != p.Lease: // selecting or rebooting with an address that is not its own
		return nak(r, p)
	}
	switch reason := fits(r, v); {
	case reason == ReasonNoSession:
		return nak(r, p) // makes it start again with a DISCOVER, which opens one
	case reason != "":
		return drop(reason)
	}
	return answer(r, p, dhcpv4.MessageTypeAck, lease(p), boot(r, p, v))
}

// bootServer answers on 4011. EDK2 goes there when an offer has option 60
// without discovery options in 43, which ours never have; other ROMs always do.
func bootServer(r Request, p Policy, v View) Decision {
	switch {
	case r.Class != ClassPXE:
		return drop(ReasonClass)
	case r.From.Addr().Unmap() != p.Lease:
		return drop(ReasonSource)
	}
	if reason := fits(r, v); reason != "" {
		return drop(reason)
	}
	return answer(r, p, dhcpv4.MessageTypeAck, boot(r, p, v),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient")), dhcpv4.WithClientIP(r.Packet.ClientIPAddr))
}

// inform gives who has the address its parameters again, without a lease (RFC 2131 §4.3.5).
func inform(r Request, p Policy, v View) Decision {
	if holds := address(r.Packet.ClientIPAddr.To4()); holds != p.Lease {
		return drop(ReasonSource)
	}
	if reason := fits(r, v); reason != "" {
		return drop(reason)
	}
	return answer(r, p, dhcpv4.MessageTypeAck, network(p), boot(r, p, v), dhcpv4.WithClientIP(r.Packet.ClientIPAddr))
}

func nak(r Request, p Policy) Decision { return answer(r, p, dhcpv4.MessageTypeNak) }

var replyNames = map[dhcpv4.MessageType]string{
	dhcpv4.MessageTypeOffer: "offer", dhcpv4.MessageTypeAck: "ack", dhcpv4.MessageTypeNak: "nak",
}

// answer builds the reply. The library copies xid, flags, chaddr and options 61
// (RFC 6842) and 82 from the request.
func answer(r Request, p Policy, t dhcpv4.MessageType, modifiers ...dhcpv4.Modifier) Decision {
	all := append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(t),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(p.Server.Addr().AsSlice())),
	}, modifiers...)
	reply, err := dhcpv4.NewReplyFromRequest(r.Packet, all...)
	if err != nil {
		return drop(ReasonMalformed)
	}
	// The machine's GUID goes back as it came, and only if it came: firmware
	// drops replies with another one, and ROMs without it drop replies with one.
	if guid := r.Packet.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(guid) == 17 && t != dhcpv4.MessageTypeNak {
		reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, guid))
	}
	// The codec cuts longer fields without a word; and nothing may be put into
	// a frame that the client cannot take.
	if len(reply.BootFileName) > 127 || len(reply.ServerHostName) > 63 || len(reply.ToBytes()) > maxReply(r) {
		return drop(ReasonReplySize)
	}
	return Decision{Reply: reply, Name: replyNames[t], To: destination(r)}
}

// destination returns where a reply goes. RFC 2131 §4.1 has five cases; on a
// cable with one client the broadcast reaches it in each of them, needs no ARP
// and no raw frame, and is what firmware with and without the broadcast flag
// takes. Only a boot server request is answered to its source.
func destination(r Request) netip.AddrPort {
	if r.Port == PortBINL {
		return r.From
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), PortClient)
}

// maxReply returns the size in bytes of the largest reply for r: 576 less the
// headers of IP and UDP, or what option 57 says, which counts them too.
func maxReply(r Request) int {
	size := 576
	if o := r.Packet.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(o) == 2 {
		size = max(size, int(o[0])<<8|int(o[1]))
	}
	return min(size, MaxPacket) - 28
}

// lease gives the address.
func lease(p Policy) dhcpv4.Modifier {
	return func(d *dhcpv4.DHCPv4) {
		d.YourIPAddr = p.Lease.AsSlice()
		d.UpdateOption(dhcpv4.OptIPAddressLeaseTime(LeaseTime))
		network(p)(d)
	}
}

func network(p Policy) dhcpv4.Modifier {
	return func(d *dhcpv4.DHCPv4) {
		d.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(p.Server.Bits(), 32)))
		d.UpdateOption(dhcpv4.OptRouter(p.Server.Addr().AsSlice()))
	}
}

// boot says what to load and from where, in the way that the client reads it.
func boot(r Request, p Policy, v View) dhcpv4.Modifier {
	base := p.BaseURL + "/b/" + v.ID + "/"
	switch r.Class {
	case ClassHTTP:
		// The other way round than for PXE: without option 60 in it the offer
		// is an ordinary one for EDK2, and it boots nothing.
		return func(d *dhcpv4.DHCPv4) {
			d.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient"))
			file(d, base+manifest.UKI)
		}
	case ClassIPXE:
		return func(d *dhcpv4.DHCPv4) {
			d.UpdateOption(dhcpv4.OptGeneric(optionIPXE, []byte{176, 1, 1}))
			file(d, base+session.Script)
		}
	case ClassAgent:
		return func(d *dhcpv4.DHCPv4) {
			d.UpdateOption(dhcpv4.OptGeneric(optionSession, []byte(v.ID)))
			d.UpdateOption(dhcpv4.OptGeneric(optionAgentPort, binary.BigEndian.AppendUint16(nil, p.AgentPort)))
			d.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionBootfileName, []byte(base)))
		}
	}
	// PXE: no option 60 and no 43, or EDK2 takes us for a boot server to be
	// asked on 4011. Some ROMs read the header's fields only, others the
	// options only, so it is said in both.
	return func(d *dhcpv4.DHCPv4) {
		server := p.Server.Addr()
		d.ServerIPAddr = server.AsSlice()
		d.ServerHostName = server.String()
		if r.Packet.IsOptionRequested(dhcpv4.OptionTFTPServerName) {
			d.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionTFTPServerName, terminated(server.String())))
		}
		file(d, v.ID+"/"+manifest.UKI)
	}
}

// file names what to load in the header and in option 67.
func file(d *dhcpv4.DHCPv4, name string) {
	d.BootFileName = name
	d.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionBootfileName, terminated(name)))
}

// terminated adds the NUL that firmware needs which takes the option for a C
// string; the rest reads up to it.
func terminated(s string) []byte { return append([]byte(s), 0) }

// address reads four bytes; anything else is the invalid address.
func address(b []byte) netip.Addr {
	if len(b) != 4 {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(b))
}
