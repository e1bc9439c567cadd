package hpcinit

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	testMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	testXID = dhcpv4.TransactionID{1, 2, 3, 4}
)

func TestMessagesSayWhoAsks(t *testing.T) {
	d := discover(testMAC, testXID, 3)
	offer := goodReply(d)
	for _, p := range []*dhcpv4.DHCPv4{d, request(testMAC, offer, 3)} {
		again, err := dhcpv4.FromBytes(p.ToBytes())
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case again.ClassIdentifier() != "portcullis-agent/1":
			t.Errorf("option 60 is %q", again.ClassIdentifier())
		case !again.IsBroadcast():
			t.Error("no broadcast flag: the answer could not be heard")
		case !again.ClientIPAddr.Equal(net.IPv4zero) || again.TransactionID != testXID || again.NumSeconds != 3:
			t.Errorf("header: %v", again)
		case !again.IsOptionRequested(optionSession) || !again.IsOptionRequested(dhcpv4.OptionBootfileName):
			t.Error("session and URL are not asked for")
		}
	}
	r := request(testMAC, offer, 0)
	if !r.ServerIdentifier().Equal(offer.ServerIdentifier()) || !r.RequestedIPAddress().Equal(offer.YourIPAddr) {
		t.Errorf("the request accepts %v of %v", r.RequestedIPAddress(), r.ServerIdentifier())
	}
}

// judgeAck runs an acknowledgement with its wire form through both checks.
func judgeAck(ack, offer *dhcpv4.DHCPv4, source netip.Addr) (Lease, error) {
	p, err := parseReply(ack.ToBytes(), source, testXID, testMAC, dhcpv4.MessageTypeAck)
	if err != nil {
		return Lease{}, err
	}
	return leaseOf(p, offer)
}

func TestLease(t *testing.T) {
	offer := goodReply(discover(testMAC, testXID, 0))
	l, err := judgeAck(goodReply(request(testMAC, offer, 0)), offer, gatewayAddr)
	want := Lease{
		Address: netip.MustParsePrefix("10.77.0.2/24"), Server: gatewayAddr, Router: gatewayAddr, Session: testSession, Agent: defaultAgentPort,
		HTTP: netip.MustParseAddrPort("10.77.0.1:80"), Path: "/b/" + testSession + "/",
	}
	if err != nil || l != want {
		t.Fatalf("%+v, %v", l, err)
	}
}

func TestAgentPortIsWhatTheGatewaySays(t *testing.T) {
	for value, want := range map[string]uint16{"": defaultAgentPort, "\x1d\x14": 7444, "\xff\xff": 65535} {
		if got, ok := agentPort([]byte(value)); !ok || got != want {
			t.Errorf("%x: port %d, %v; want %d", value, got, ok, want)
		}
	}
}

func TestRepliesThatArePassedOver(t *testing.T) {
	option := func(code dhcpv4.OptionCode, v string) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptGeneric(code, []byte(v))) }
	}
	without := func(code dhcpv4.OptionCode) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) { p.Options.Del(code) }
	}
	session := func(s string) func(*dhcpv4.DHCPv4) { return option(optionSession, s) }
	for name, c := range map[string]struct {
		reason string
		change func(*dhcpv4.DHCPv4)
	}{
		"a request":                      {dropForeign, func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootRequest }},
		"another transaction":            {dropForeign, func(p *dhcpv4.DHCPv4) { p.TransactionID[0]++ }},
		"another machine":                {dropForeign, func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = net.HardwareAddr{2, 0, 0, 0, 0, 9} }},
		"an offer":                       {dropType, func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer)) }},
		"a refusal":                      {dropNak, func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak)) }},
		"no type":                        {dropType, without(dhcpv4.OptionDHCPMessageType)},
		"no server id":                   {dropServer, without(dhcpv4.OptionServerIdentifier)},
		"id of a server that did not":    {dropServer, option(dhcpv4.OptionServerIdentifier, "\x0a\x4d\x00\x03")},
		"no address":                     {dropAddress, func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IPv4zero }},
		"broadcast address":              {dropAddress, func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IPv4bcast }},
		"multicast address":              {dropAddress, func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IPv4(224, 0, 0, 1) }},
		"loopback address":               {dropAddress, func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IPv4(127, 0, 0, 1) }},
		"another address than offered":   {dropAddress, func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IPv4(10, 77, 0, 9) }},
		"no mask":                        {dropMask, without(dhcpv4.OptionSubnetMask)},
		"mask with a hole":               {dropMask, option(dhcpv4.OptionSubnetMask, "\xff\x00\xff\x00")},
		"mask of the whole world":        {dropMask, option(dhcpv4.OptionSubnetMask, "\x00\x00\x00\x00")},
		"mask of one host":               {dropMask, option(dhcpv4.OptionSubnetMask, "\xff\xff\xff\xff")},
		"router elsewhere":               {dropRouter, option(dhcpv4.OptionRouter, "\xc0\x00\x02\x01")},
		"router is this machine":         {dropRouter, option(dhcpv4.OptionRouter, "\x0a\x4d\x00\x02")},
		"agent port of one byte":         {dropAgentPort, option(optionAgentPort, "\x1d")},
		"agent port zero":                {dropAgentPort, option(optionAgentPort, "\x00\x00")},
		"agent port as text":             {dropAgentPort, option(optionAgentPort, "7443")},
		"no session":                     {dropSession, without(optionSession)},
		"short session":                  {dropSession, session(testSession[1:])},
		"long session":                   {dropSession, session(testSession + "a")},
		"upper case session":             {dropSession, session(strings.ToUpper(testSession))},
		"session with digits of base 64": {dropSession, session("0189" + testSession[4:])},
		"session with a slash":           {dropSession, session("/" + testSession[1:])},
		"session with two ends":          {dropSession, session(testSession + "\x00\x00")},
		"no URL":                         {dropBootURL, without(dhcpv4.OptionBootfileName)},
		"URL of another session":         {dropBootURL, option(dhcpv4.OptionBootfileName, "http://10.77.0.1/b/"+strings.Repeat("a", 26)+"/")},
		"URL of another host":            {dropBootURL, option(dhcpv4.OptionBootfileName, "http://192.0.2.1/b/"+testSession+"/")},
		"URL by name":                    {dropBootURL, option(dhcpv4.OptionBootfileName, "http://gateway/b/"+testSession+"/")},
		"https":                          {dropBootURL, option(dhcpv4.OptionBootfileName, "https://10.77.0.1/b/"+testSession+"/")},
		"URL with a user":                {dropBootURL, option(dhcpv4.OptionBootfileName, "http://u@10.77.0.1/b/"+testSession+"/")},
		"URL with a query":               {dropBootURL, option(dhcpv4.OptionBootfileName, "http://10.77.0.1/b/"+testSession+"/?a=b")},
		"URL with a header":              {dropBootURL, option(dhcpv4.OptionBootfileName, "http://10.77.0.1/b/"+testSession+"/\r\nX: y")},
		"URL at port 0":                  {dropBootURL, option(dhcpv4.OptionBootfileName, "http://10.77.0.1:0/b/"+testSession+"/")},
		"URL of a file":                  {dropBootURL, option(dhcpv4.OptionBootfileName, "http://10.77.0.1/b/"+testSession+"/hpc.efi")},
	} {
		offer := goodReply(discover(testMAC, testXID, 0))
		ack := goodReply(request(testMAC, offer, 0))
		c.change(ack)
		l, err := judgeAck(ack, offer, gatewayAddr)
		var d *dropError
		if !errors.As(err, &d) || d.reason != c.reason {
			t.Errorf("%s: %+v, %v; want %s", name, l, err, c.reason)
		}
	}
}

// An answer to our transaction from a machine that is not the server it names.
func TestAttackRogueServerBorrowsTheServerID(t *testing.T) {
	offer := goodReply(discover(testMAC, testXID, 0))
	_, err := judgeAck(goodReply(request(testMAC, offer, 0)), offer, netip.MustParseAddr("10.77.0.66"))
	var d *dropError
	if !errors.As(err, &d) || d.reason != dropServer {
		t.Errorf("%v", err)
	}
}

func TestURLWithPortAndNUL(t *testing.T) {
	offer := goodReply(discover(testMAC, testXID, 0))
	ack := goodReply(request(testMAC, offer, 0))
	ack.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionBootfileName, []byte("http://10.77.0.1:8080/b/"+testSession+"/\x00")))
	ack.Options.Del(dhcpv4.OptionRouter)
	l, err := judgeAck(ack, offer, gatewayAddr)
	if err != nil || l.HTTP.String() != "10.77.0.1:8080" || l.Router.IsValid() {
		t.Errorf("%+v, %v", l, err)
	}
}

func FuzzReply(f *testing.F) {
	offer := goodReply(discover(testMAC, testXID, 0))
	f.Add(offer.ToBytes())
	f.Add(goodReply(request(testMAC, offer, 0)).ToBytes())
	f.Add([]byte{2, 1, 6, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseReply(b, gatewayAddr, testXID, testMAC, dhcpv4.MessageTypeOffer)
		ack, err := parseReply(b, gatewayAddr, testXID, testMAC, dhcpv4.MessageTypeAck)
		if err != nil {
			return
		}
		l, err := leaseOf(ack, offer)
		if err == nil && (l.HTTP.Addr() != gatewayAddr || !l.Address.Contains(gatewayAddr) || l.Path != "/b/"+l.Session+"/") {
			t.Fatalf("accepted %+v", l)
		}
	})
}
