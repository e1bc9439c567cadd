package hpcinit

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"net/url"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/agent/bootinfo"
)

// VendorClass is option 60 of this client: the gateway answers it with the boot
// session instead of a boot file.
const VendorClass = "portcullis-agent/1"

// optionSession carries the boot session's id: the first of the options that
// RFC 2132 section 2 (as extended by RFC 3942) leaves to a site.
const optionSession = dhcpv4.GenericOptionCode(224)

// optionAgentPort says where the gateway takes claims, as a port in network order.
const optionAgentPort = dhcpv4.GenericOptionCode(225)

// defaultAgentPort holds where the gateway does not say.
const defaultAgentPort = 7443

// Lease is what a valid acknowledgement gives.
type Lease struct {
	Address netip.Prefix   // of this machine, with the link's prefix length
	Server  netip.Addr     // the gateway
	Router  netip.Addr     // default route; not valid when none was given
	Session string         // boot session
	Agent   uint16         // the gateway's port for claims
	HTTP    netip.AddrPort // where the boot files are
	Path    string         // their directory there: /b/<session>/
}

// discover makes a DISCOVER. secs is the time since the first one, in seconds.
func discover(mac net.HardwareAddr, xid dhcpv4.TransactionID, secs uint16) *dhcpv4.DHCPv4 {
	return message(mac, xid, secs, dhcpv4.MessageTypeDiscover)
}

// request makes the REQUEST that accepts an offer: option 54 and the requested
// address, ciaddr zero (RFC 2131 section 4.3.2, SELECTING).
func request(mac net.HardwareAddr, offer *dhcpv4.DHCPv4, secs uint16) *dhcpv4.DHCPv4 {
	p := message(mac, offer.TransactionID, secs, dhcpv4.MessageTypeRequest)
	p.UpdateOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr))
	p.UpdateOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))
	return p
}

// message sets the broadcast flag: this machine has no address yet and, with
// plain UDP sockets, hears only broadcasts.
func message(mac net.HardwareAddr, xid dhcpv4.TransactionID, secs uint16, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootRequest,
		HWType:        1, // Ethernet
		ClientHWAddr:  mac,
		TransactionID: xid,
		NumSeconds:    secs,
		ClientIPAddr:  net.IPv4zero,
		YourIPAddr:    net.IPv4zero,
		ServerIPAddr:  net.IPv4zero,
		GatewayIPAddr: net.IPv4zero,
		Options:       dhcpv4.Options{},
	}
	p.SetBroadcast()
	p.UpdateOption(dhcpv4.OptMessageType(kind))
	p.UpdateOption(dhcpv4.OptClassIdentifier(VendorClass))
	p.UpdateOption(dhcpv4.OptParameterRequestList(
		dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionIPAddressLeaseTime,
		dhcpv4.OptionServerIdentifier, dhcpv4.OptionBootfileName, optionSession, optionAgentPort))
	return p
}

// Reasons why a DHCP packet is passed over. They are counted and shown when no
// lease comes.
const (
	dropMalformed = "malformed"
	dropForeign   = "foreign" // somebody else's transaction
	dropType      = "type"    // not the kind of message that is waited for
	dropServer    = "server"  // no server id, or another server's
	dropNak       = "nak"
	dropMask      = "mask"
	dropAddress   = "address"
	dropRouter    = "router"
	dropSession   = "session"
	dropAgentPort = "agent-port"
	dropBootURL   = "boot-url"
)

// dropError is a packet that is passed over.
type dropError struct{ reason, detail string }

func (e *dropError) Error() string { return e.reason + ": " + e.detail }

func drop(reason, format string, args ...any) error {
	return &dropError{reason, fmt.Sprintf(format, args...)}
}

// parseReply decodes a packet from server source and checks that it is a reply
// of kind want in our transaction by the server that it came from.
func parseReply(b []byte, source netip.Addr, xid dhcpv4.TransactionID, mac net.HardwareAddr, want dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	p, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, drop(dropMalformed, "%v", err)
	}
	if p.OpCode != dhcpv4.OpcodeBootReply || p.TransactionID != xid || p.ClientHWAddr.String() != mac.String() {
		return nil, drop(dropForeign, "transaction %v for %v", p.TransactionID, p.ClientHWAddr)
	}
	server, ok := ip4(p.ServerIdentifier())
	if !ok || server != source {
		return nil, drop(dropServer, "server id %v in a packet from %v", p.ServerIdentifier(), source)
	}
	switch kind := p.MessageType(); {
	case kind == dhcpv4.MessageTypeNak && want == dhcpv4.MessageTypeAck:
		return nil, drop(dropNak, "%q", p.Message())
	case kind != want:
		return nil, drop(dropType, "%v instead of %v", kind, want)
	}
	if yours, ok := ip4(p.YourIPAddr); !ok || !yours.IsGlobalUnicast() {
		return nil, drop(dropAddress, "%v", p.YourIPAddr)
	}
	return p, nil
}

// leaseOf reads the lease out of the acknowledgement of an offer.
func leaseOf(ack, offer *dhcpv4.DHCPv4) (Lease, error) {
	var l Lease
	server, _ := ip4(ack.ServerIdentifier()) // parseReply has checked both
	address, _ := ip4(ack.YourIPAddr)
	if o := offer.ServerIdentifier(); !o.Equal(ack.ServerIdentifier()) {
		return l, drop(dropServer, "%v acknowledges what %v offered", server, o)
	}
	if !ack.YourIPAddr.Equal(offer.YourIPAddr) {
		return l, drop(dropAddress, "%v acknowledged, %v offered", address, offer.YourIPAddr)
	}
	ones, bits := ack.SubnetMask().Size() // 0, 0 for none and for one with holes
	if bits != 32 || ones < 8 || ones > 30 {
		return l, drop(dropMask, "%v", ack.SubnetMask())
	}
	l.Address, l.Server = netip.PrefixFrom(address, ones), server
	if address == server || !l.Address.Contains(server) {
		return l, drop(dropAddress, "server %v and address %v are not neighbours", server, l.Address)
	}
	if routers := ack.Router(); len(routers) > 0 {
		r, ok := ip4(routers[0])
		if !ok || r == address || !l.Address.Contains(r) {
			return l, drop(dropRouter, "%v is not on the link of %v", routers[0], l.Address)
		}
		l.Router = r
	}
	l.Session = text(ack.Options.Get(optionSession))
	if !bootinfo.ValidSession(l.Session) {
		return l, drop(dropSession, "option 224 is %.64q", l.Session)
	}
	var ok bool
	if l.Agent, ok = agentPort(ack.Options.Get(optionAgentPort)); !ok {
		return l, drop(dropAgentPort, "option 225 is %.8x", ack.Options.Get(optionAgentPort))
	}
	var err error
	l.HTTP, l.Path, err = bootURL(text(ack.Options.Get(dhcpv4.OptionBootfileName)), l.Server, l.Session)
	return l, err
}

func agentPort(b []byte) (uint16, bool) {
	switch len(b) {
	case 0:
		return defaultAgentPort, true
	case 2:
		p := binary.BigEndian.Uint16(b)
		return p, p != 0
	}
	return 0, false
}

// bootURL checks option 67: http://<server>[:port]/b/<session>/ and nothing else.
func bootURL(s string, server netip.Addr, session string) (netip.AddrPort, string, error) {
	fail := func(why string) (netip.AddrPort, string, error) {
		return netip.AddrPort{}, "", drop(dropBootURL, "option 67 is %.128q: %s", s, why)
	}
	u, err := url.Parse(s)
	if err != nil {
		return fail("no URL")
	}
	path := "/b/" + session + "/"
	host, err := netip.ParseAddrPort(u.Host)
	if err != nil {
		a, err := netip.ParseAddr(u.Host)
		if err != nil {
			return fail("its host is no address")
		}
		host = netip.AddrPortFrom(a, 80)
	}
	switch {
	case host.Addr() != server || host.Port() == 0:
		return fail("its host is not the DHCP server " + server.String())
	case s != "http://"+u.Host+path:
		return fail("it should be http://" + host.String() + path)
	}
	return host, path, nil
}

// text takes an option's value as text. Servers end such options with a NUL, or do not.
func text(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}

func ip4(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	return a, ok && a.Is4()
}
