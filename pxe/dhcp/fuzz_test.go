package dhcp

import (
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/pxe/session"
)

var recordings = []string{
	"ovmf-http-discover", "ovmf-http-request", "ovmf-pxe-discover", "ovmf-pxe-request",
	"edk2-binl-request", "ipxe-bios-discover", "ipxe-bios-request",
}

// FuzzDecide: whatever arrives, there is a reply that fits or one typed reason, and no panic.
func FuzzDecide(f *testing.F) {
	for i, name := range recordings {
		f.Add(recorded(f, name), i%2 == 0, uint8(i))
	}
	f.Fuzz(func(t *testing.T, raw []byte, binl bool, state uint8) {
		port, from := PortServer, anybody
		if binl {
			port, from = PortBINL, fromLease
		}
		v := View{ID: sid, Live: state&1 != 0, Claimed: state&2 != 0,
			Firmware: []session.Firmware{session.UEFIHTTP, session.UEFIPXE, session.IPXE, session.BIOS}[state>>2&3]}
		checkDecision(t, raw, from, port, v)
	})
}

func checkDecision(t *testing.T, raw []byte, from netip.AddrPort, port int, v View) {
	t.Helper()
	r, reason := Parse(raw, from, port, policy)
	if reason != "" {
		return
	}
	d := Decide(r, policy, v)
	if (d.Reason == "") != (d.Reply != nil) {
		t.Fatalf("reason %q and reply %v", d.Reason, d.Reply)
	}
	if d.Reply == nil {
		return
	}
	out := d.Reply.ToBytes()
	if len(out) > maxReply(r) || len(out) > MaxPacket-28 {
		t.Fatalf("a reply of %d bytes", len(out))
	}
	if _, err := dhcpv4.FromBytes(out); err != nil {
		t.Fatalf("our reply cannot be read: %v", err)
	}
	if d.To != broadcast && d.To != fromLease {
		t.Fatalf("sent to %s", d.To)
	}
	if d.Reply.OpCode != dhcpv4.OpcodeBootReply {
		t.Fatal("a reply that is a request")
	}
}
