package dhcp

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/pxe/session"
)

const sid = "abcdefghijklmnopqrstuvwxyz"

var (
	server = netip.MustParsePrefix("10.77.0.1/24")
	lessee = netip.MustParseAddr("10.77.0.2")
	pc     = [6]byte{0x52, 0x54, 0, 0xaa, 0, 2}
	policy = Policy{MAC: pc, Server: server, Lease: lessee, BaseURL: "http://10.77.0.1", AgentPort: 7444, AllowBIOS: true}

	anybody   = netip.MustParseAddrPort("0.0.0.0:68")
	fromLease = netip.MustParseAddrPort("10.77.0.2:4011")
	broadcast = netip.MustParseAddrPort("255.255.255.255:68")
)

// recorded returns a packet as firmware sent it.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func live(f session.Firmware) View { return View{ID: sid, Firmware: f, Live: true} }

// ask runs a packet through Parse and Decide.
func ask(raw []byte, from netip.AddrPort, port int, p Policy, v View) Decision {
	r, reason := Parse(raw, from, port, p)
	if reason != "" {
		return drop(reason)
	}
	return Decide(r, p, v)
}

// TestRecordedFirmware holds the replies against what each firmware needs.
func TestRecordedFirmware(t *testing.T) {
	url := "http://10.77.0.1/b/" + sid + "/"
	tests := []struct {
		packet   string
		port     int
		from     netip.AddrPort
		firmware session.Firmware
		kind     dhcpv4.MessageType
		boots    bool
		to       netip.AddrPort
		file     string
		class    string // option 60 of the reply, "" for none
		siaddr   bool
		option66 bool
		ipxe     bool
		leased   bool
	}{
		{packet: "ovmf-http-discover", firmware: session.UEFIHTTP, kind: dhcpv4.MessageTypeOffer, boots: true, to: broadcast, file: url + "hpc.efi", class: "HTTPClient", leased: true},
		{packet: "ovmf-http-request", firmware: session.UEFIHTTP, kind: dhcpv4.MessageTypeAck, to: broadcast, file: url + "hpc.efi", class: "HTTPClient", leased: true},
		{packet: "ovmf-pxe-discover", firmware: session.UEFIPXE, kind: dhcpv4.MessageTypeOffer, boots: true, to: broadcast, file: sid + "/hpc.efi", siaddr: true, option66: true, leased: true},
		{packet: "ovmf-pxe-request", firmware: session.UEFIPXE, kind: dhcpv4.MessageTypeAck, to: broadcast, file: sid + "/hpc.efi", siaddr: true, option66: true, leased: true},
		{packet: "edk2-binl-request", port: PortBINL, from: fromLease, firmware: session.UEFIPXE, kind: dhcpv4.MessageTypeAck, to: fromLease, file: sid + "/hpc.efi", class: "PXEClient", siaddr: true, option66: true},
		{packet: "ipxe-bios-discover", firmware: session.BIOS, kind: dhcpv4.MessageTypeOffer, boots: true, to: broadcast, file: url + "boot.ipxe", ipxe: true, leased: true},
		{packet: "ipxe-bios-request", firmware: session.BIOS, kind: dhcpv4.MessageTypeAck, to: broadcast, file: url + "boot.ipxe", ipxe: true, leased: true},
	}
	for _, tt := range tests {
		t.Run(tt.packet, func(t *testing.T) {
			raw := recorded(t, tt.packet)
			if tt.port == 0 {
				tt.port, tt.from = PortServer, anybody
			}
			r, reason := Parse(raw, tt.from, tt.port, policy)
			if reason != "" || r.Firmware != tt.firmware || r.Boots() != tt.boots {
				t.Fatalf("parsed as %q, boots %v, reason %q", r.Firmware, r.Boots(), reason)
			}
			d := Decide(r, policy, live(tt.firmware))
			if d.Reason != "" {
				t.Fatal(d.Reason)
			}
			if d.To != tt.to {
				t.Errorf("sent to %s", d.To)
			}
			checkWire(t, raw, d)
			reply := d.Reply
			if reply.MessageType() != tt.kind {
				t.Errorf("type %s", reply.MessageType())
			}
			if reply.BootFileName != tt.file {
				t.Errorf("file %q", reply.BootFileName)
			}
			if got := reply.Options.Get(dhcpv4.OptionBootfileName); string(got) != tt.file+"\x00" {
				t.Errorf("option 67 %q", got)
			}
			if got := string(reply.Options.Get(dhcpv4.OptionClassIdentifier)); got != tt.class {
				t.Errorf("option 60 %q", got)
			}
			if reply.Options.Has(dhcpv4.OptionVendorSpecificInformation) {
				t.Error("option 43 is there: EDK2 takes us for a boot server list")
			}
			if got := reply.ServerIPAddr.Equal(server.Addr().AsSlice()); got != tt.siaddr {
				t.Errorf("siaddr %s", reply.ServerIPAddr)
			}
			if got := string(reply.Options.Get(dhcpv4.OptionTFTPServerName)); (got == "10.77.0.1\x00") != tt.option66 {
				t.Errorf("option 66 %q", got)
			}
			if tt.siaddr && reply.ServerHostName != "10.77.0.1" {
				t.Errorf("sname %q", reply.ServerHostName)
			}
			if got := reply.Options.Get(optionIPXE); (string(got) == "\xb0\x01\x01") != tt.ipxe {
				t.Errorf("option 175 %x", got)
			}
			if got := reply.YourIPAddr.Equal(lessee.AsSlice()); got != tt.leased {
				t.Errorf("yiaddr %s", reply.YourIPAddr)
			}
			if got := reply.Options.Has(dhcpv4.OptionIPAddressLeaseTime); got != tt.leased {
				t.Errorf("lease time there: %v", got)
			}
			if tt.port == PortBINL && !reply.ClientIPAddr.Equal(lessee.AsSlice()) {
				t.Errorf("ciaddr %s is not kept", reply.ClientIPAddr)
			}
		})
	}
}

// checkWire holds every reply against what must be true of all of them.
func checkWire(t *testing.T, raw []byte, d Decision) {
	t.Helper()
	out := d.Reply.ToBytes()
	request, err := dhcpv4.FromBytes(raw)
	if err != nil {
		t.Fatal(err)
	}
	back, err := dhcpv4.FromBytes(out)
	if err != nil {
		t.Fatalf("our own reply cannot be read: %v", err)
	}
	if len(out) < 300 || len(out) > MaxPacket-28 {
		t.Errorf("%d bytes long", len(out))
	}
	if !request.Options.Has(dhcpv4.OptionMaximumDHCPMessageSize) && len(out) > 548 {
		t.Errorf("%d bytes for a client that did not say it takes more than 576", len(out))
	}
	if back.OpCode != dhcpv4.OpcodeBootReply || back.TransactionID != request.TransactionID || !bytes.Equal(back.ClientHWAddr, request.ClientHWAddr) {
		t.Error("op, xid or chaddr is wrong")
	}
	if back.Options.Has(dhcpv4.OptionOptionOverload) {
		t.Error("option overload is used")
	}
	if got := back.Options.Get(dhcpv4.OptionServerIdentifier); !net.IP(got).Equal(server.Addr().AsSlice()) {
		t.Errorf("option 54 %v", got)
	}
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientMachineIdentifier, dhcpv4.OptionClientIdentifier} {
		if back.MessageType() == dhcpv4.MessageTypeNak && code == dhcpv4.OptionClientMachineIdentifier {
			continue
		}
		if !bytes.Equal(back.Options.Get(code), request.Options.Get(code)) || back.Options.Has(code) != request.Options.Has(code) {
			t.Errorf("option %d is not mirrored: %x", code.Code(), back.Options.Get(code))
		}
	}
}

// with changes a recorded packet.
func with(t testing.TB, name string, edit func(*dhcpv4.DHCPv4)) []byte {
	t.Helper()
	d, err := dhcpv4.FromBytes(recorded(t, name))
	if err != nil {
		t.Fatal(err)
	}
	edit(d)
	return d.ToBytes()
}

func set(code dhcpv4.OptionCode, value ...byte) func(*dhcpv4.DHCPv4) {
	return func(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptGeneric(code, value)) }
}

func without(code dhcpv4.OptionCode) func(*dhcpv4.DHCPv4) {
	return func(d *dhcpv4.DHCPv4) { d.DeleteOption(code) }
}

func typed(m dhcpv4.MessageType) func(*dhcpv4.DHCPv4) {
	return func(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptMessageType(m)) }
}

func TestDropsAndTheirReasons(t *testing.T) {
	http := session.UEFIHTTP
	tests := map[string]struct {
		base   string
		edit   func(*dhcpv4.DHCPv4)
		raw    func([]byte) []byte
		port   int
		from   netip.AddrPort
		policy func(*Policy)
		view   *View
		want   Reason
	}{
		"empty":                       {raw: func([]byte) []byte { return nil }, want: ReasonMalformed},
		"no END":                      {raw: func(b []byte) []byte { return b[:len(b)-1] }, want: ReasonMalformed},
		"wrong cookie":                {raw: func(b []byte) []byte { b[236] ^= 1; return b }, want: ReasonMalformed},
		"option runs out":             {raw: func(b []byte) []byte { b[len(b)-19] = 200; return b }, want: ReasonMalformed},
		"larger than a frame":         {raw: func(b []byte) []byte { return append(b, make([]byte, 2000)...) }, want: ReasonOversize},
		"not Ethernet":                {edit: func(d *dhcpv4.DHCPv4) { d.HWType = 6 }, want: ReasonHardware},
		"chaddr of 16 bytes":          {edit: func(d *dhcpv4.DHCPv4) { d.ClientHWAddr = make([]byte, 16) }, want: ReasonHardware},
		"another machine":             {edit: func(d *dhcpv4.DHCPv4) { d.ClientHWAddr[5] = 9 }, want: ReasonUnknownMAC},
		"relayed":                     {edit: func(d *dhcpv4.DHCPv4) { d.GatewayIPAddr = net.IP{10, 0, 0, 1} }, want: ReasonRelayed},
		"a server's offer":            {edit: func(d *dhcpv4.DHCPv4) { d.OpCode = dhcpv4.OpcodeBootReply; typed(dhcpv4.MessageTypeOffer)(d) }, want: ReasonRogueServer},
		"offer as a request":          {edit: typed(dhcpv4.MessageTypeOffer), want: ReasonRogueServer},
		"ack as a request":            {edit: typed(dhcpv4.MessageTypeAck), want: ReasonRogueServer},
		"BOOTP":                       {edit: without(dhcpv4.OptionDHCPMessageType), want: ReasonType},
		"type 99":                     {edit: set(dhcpv4.OptionDHCPMessageType, 99), want: ReasonType},
		"no class":                    {edit: without(dhcpv4.OptionClassIdentifier), want: ReasonClass},
		"an ordinary client":          {edit: func(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptClassIdentifier("dhcpcd-9.4.1")) }, want: ReasonClass},
		"agent of the future":         {edit: func(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptClassIdentifier("portcullis-agent/2")) }, want: ReasonClass},
		"no arch":                     {edit: without(dhcpv4.OptionClientSystemArchitectureType), want: ReasonArchMissing},
		"unknown arch":                {edit: set(dhcpv4.OptionClientSystemArchitectureType, 0x77, 0x77), want: ReasonArchUnknown},
		"half an arch":                {edit: set(dhcpv4.OptionClientSystemArchitectureType, 0), want: ReasonArchUnknown},
		"arm64 over HTTP":             {edit: set(dhcpv4.OptionClientSystemArchitectureType, 0, 19), want: ReasonArchUnfit},
		"ia32 over HTTP":              {edit: set(dhcpv4.OptionClientSystemArchitectureType, 0, 15), want: ReasonArchUnfit},
		"arm64 over PXE":              {base: "ovmf-pxe-discover", edit: set(dhcpv4.OptionClientSystemArchitectureType, 0, 11), want: ReasonArchUnfit},
		"Raspberry Pi":                {base: "ovmf-pxe-discover", edit: set(dhcpv4.OptionClientSystemArchitectureType, 0, 41), want: ReasonArchUnfit},
		"PXE class, HTTP arch":        {base: "ovmf-pxe-discover", edit: set(dhcpv4.OptionClientSystemArchitectureType, 0, 16), want: ReasonArchUnfit},
		"BIOS without iPXE":           {base: "ipxe-bios-discover", edit: without(dhcpv4.OptionUserClassInformation), want: ReasonBIOSNoIPXE},
		"BIOS not allowed":            {base: "ipxe-bios-discover", policy: func(p *Policy) { p.AllowBIOS = false }, want: ReasonBIOS},
		"no session":                  {view: &View{}, want: ReasonNoSession},
		"session of another firmware": {view: &View{ID: sid, Firmware: session.UEFIPXE, Live: true}, want: ReasonOtherFirmware},
		"URL does not fit":            {policy: func(p *Policy) { p.BaseURL = "http://" + strings.Repeat("x", 120) }, want: ReasonReplySize},
		"another server chosen":       {base: "ovmf-http-request", edit: set(dhcpv4.OptionServerIdentifier, 10, 77, 0, 66), want: ReasonRogueServer},
		"decline":                     {edit: typed(dhcpv4.MessageTypeDecline), want: ReasonDeclined},
		"decline without class":       {edit: func(d *dhcpv4.DHCPv4) { typed(dhcpv4.MessageTypeDecline)(d); without(dhcpv4.OptionClassIdentifier)(d) }, want: ReasonDeclined},
		"release":                     {edit: typed(dhcpv4.MessageTypeRelease), want: ReasonReleased},
		"inform of another address":   {edit: typed(dhcpv4.MessageTypeInform), want: ReasonSource},
		"discover on 4011":            {base: "ovmf-pxe-discover", port: PortBINL, from: fromLease, want: ReasonPort},
		"4011 from elsewhere":         {base: "edk2-binl-request", port: PortBINL, from: netip.MustParseAddrPort("10.77.0.9:4011"), want: ReasonSource},
		"4011 as HTTP client":         {base: "ovmf-http-request", port: PortBINL, from: fromLease, want: ReasonClass},
		"4011 without session":        {base: "edk2-binl-request", port: PortBINL, from: fromLease, view: &View{}, want: ReasonNoSession},
		"4011 in an HTTP session":     {base: "edk2-binl-request", port: PortBINL, from: fromLease, view: &View{ID: sid, Firmware: http, Live: true}, want: ReasonOtherFirmware},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.base == "" {
				tt.base = "ovmf-http-discover"
			}
			if tt.port == 0 {
				tt.port, tt.from = PortServer, anybody
			}
			raw := recorded(t, tt.base)
			if tt.edit != nil {
				raw = with(t, tt.base, tt.edit)
			}
			if tt.raw != nil {
				raw = tt.raw(raw)
			}
			p := policy
			if tt.policy != nil {
				tt.policy(&p)
			}
			v := live(http)
			switch {
			case tt.view != nil:
				v = *tt.view
			case strings.HasPrefix(tt.base, "ovmf-pxe"), strings.HasPrefix(tt.base, "edk2"):
				v = live(session.UEFIPXE)
			case strings.HasPrefix(tt.base, "ipxe"):
				v = live(session.BIOS)
			}
			d := ask(raw, tt.from, tt.port, p, v)
			if d.Reason != tt.want || d.Reply != nil {
				t.Errorf("reason %q, reply %v; want %q", d.Reason, d.Reply, tt.want)
			}
		})
	}
}

func TestRequestStates(t *testing.T) {
	const base = "ovmf-http-request"
	renew := func(d *dhcpv4.DHCPv4) {
		without(dhcpv4.OptionServerIdentifier)(d)
		without(dhcpv4.OptionRequestedIPAddress)(d)
		d.ClientIPAddr = lessee.AsSlice()
	}
	agent := func(d *dhcpv4.DHCPv4) {
		d.UpdateOption(dhcpv4.OptClassIdentifier(AgentClass))
		without(dhcpv4.OptionClientSystemArchitectureType)(d)
	}
	claimed := View{ID: sid, Firmware: session.UEFIHTTP, Claimed: true}
	tests := map[string]struct {
		edit  func(*dhcpv4.DHCPv4)
		view  View
		want  dhcpv4.MessageType
		boots bool // the reply says what to load
	}{
		"selecting":                  {view: live(session.UEFIHTTP), want: dhcpv4.MessageTypeAck, boots: true},
		"selecting another address":  {edit: set(dhcpv4.OptionRequestedIPAddress, 10, 77, 0, 3), view: live(session.UEFIHTTP), want: dhcpv4.MessageTypeNak},
		"selecting, session gone":    {view: View{}, want: dhcpv4.MessageTypeNak},
		"rebooting with our address": {edit: without(dhcpv4.OptionServerIdentifier), view: live(session.UEFIHTTP), want: dhcpv4.MessageTypeAck, boots: true},
		"rebooting with another address": {edit: func(d *dhcpv4.DHCPv4) {
			without(dhcpv4.OptionServerIdentifier)(d)
			set(dhcpv4.OptionRequestedIPAddress, 192, 168, 1, 9)(d)
		}, view: live(session.UEFIHTTP), want: dhcpv4.MessageTypeNak},
		"no address at all": {edit: func(d *dhcpv4.DHCPv4) {
			without(dhcpv4.OptionServerIdentifier)(d)
			without(dhcpv4.OptionRequestedIPAddress)(d)
		}, view: live(session.UEFIHTTP), want: dhcpv4.MessageTypeNak},
		"address option of three bytes":       {edit: set(dhcpv4.OptionRequestedIPAddress, 10, 77, 0), view: live(session.UEFIHTTP), want: dhcpv4.MessageTypeNak},
		"renewing while it boots":             {edit: renew, view: live(session.UEFIHTTP), want: dhcpv4.MessageTypeAck, boots: true},
		"renewing after the claim":            {edit: renew, view: claimed, want: dhcpv4.MessageTypeAck},
		"the agent's client while it boots":   {edit: agent, view: live(session.UEFIPXE), want: dhcpv4.MessageTypeAck, boots: true},
		"the agent's client after the claim":  {edit: func(d *dhcpv4.DHCPv4) { agent(d); renew(d) }, view: claimed, want: dhcpv4.MessageTypeAck},
		"a new lease after the claim":         {edit: agent, view: claimed, want: dhcpv4.MessageTypeNak},
		"renewing without a session":          {edit: renew, view: View{}, want: dhcpv4.MessageTypeNak},
		"renewing an address that is no more": {edit: func(d *dhcpv4.DHCPv4) { renew(d); d.ClientIPAddr = net.IP{10, 77, 0, 3} }, view: claimed, want: dhcpv4.MessageTypeNak},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			raw := recorded(t, base)
			if tt.edit != nil {
				raw = with(t, base, tt.edit)
			}
			d := ask(raw, anybody, PortServer, policy, tt.view)
			if d.Reason != "" {
				t.Fatal(d.Reason)
			}
			checkWire(t, raw, d)
			if d.Reply.MessageType() != tt.want || d.To != broadcast {
				t.Errorf("%s to %s", d.Reply.MessageType(), d.To)
			}
			if got := d.Reply.Options.Has(dhcpv4.OptionBootfileName); got != tt.boots {
				t.Errorf("boot file there: %v", got)
			}
			if tt.want == dhcpv4.MessageTypeNak && !d.Reply.YourIPAddr.IsUnspecified() {
				t.Error("a NAK with an address")
			}
		})
	}
}
