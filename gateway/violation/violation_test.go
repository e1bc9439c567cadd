package violation

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
)

func message(t testing.TB, family byte, etherType uint16, prefix string, payload []byte) []byte {
	t.Helper()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: attrPacketHeader, Data: append(binary.BigEndian.AppendUint16(nil, etherType), 0, 0)},
		{Type: attrPrefix, Data: append([]byte(prefix), 0)},
		{Type: attrHWHeader, Data: []byte{1, 2, 3, 4, 5, 6, 0x52, 0x54, 0, 0x99, 0x99, 0x99, 8, 0}},
		{Type: attrPayload, Data: payload},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{family, 0, 0, 77}, attrs...)
}

var (
	tcp4 = []byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 77, 0, 2, 203, 0, 113, 10, 4, 87, 0x20, 0xfb, 0, 0, 0, 0}
	// The same packet as a later fragment: bytes where ports would be are data.
	frag4 = []byte{0x45, 0, 0, 40, 0, 1, 0, 2, 64, 6, 0, 0, 10, 77, 0, 2, 203, 0, 113, 10, 4, 87, 0x20, 0xfb, 0, 0, 0, 0}
	udp6  = append(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, append(netip.MustParseAddr("fe80::2").AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice()...)...), 0, 1, 0, 53, 0, 8, 0, 0)
	arp   = append([]byte{0, 1, 8, 0, 6, 4, 0, 2, 1, 1, 1, 1, 1, 1, 10, 77, 0, 1}, 0, 0, 0, 0, 0, 0, 10, 77, 0, 9)
)

func TestDecodeMessage(t *testing.T) {
	now := time.Unix(1, 0)
	for name, c := range map[string]struct {
		b    []byte
		want Violation
	}{
		"tcp": {message(t, 2, 0x0800, "portcullis:forward:forward-tcp", tcp4),
			Violation{now, "forward", "forward-tcp", "tcp", "10.77.0.2", "203.0.113.10", 8443}},
		"a later fragment has no port": {message(t, 5, 0x0800, "portcullis:link:fragment", frag4),
			Violation{now, "link", "fragment", "tcp", "10.77.0.2", "203.0.113.10", 0}},
		"udp in IPv6": {message(t, 5, 0x86dd, "portcullis:link:ip6", udp6),
			Violation{now, "link", "ip6", "ip6", "fe80::2", "2001:db8::1", 53}},
		"arp": {message(t, 5, 0x0806, "portcullis:link:arp-spoof", arp),
			Violation{now, "link", "arp-spoof", "arp", "10.77.0.1", "10.77.0.9", 0}},
		"a frame without addresses shows its MAC": {message(t, 5, 0x88cc, "portcullis:link:lldp", []byte{1}),
			Violation{now, "link", "lldp", "lldp", "52:54:00:99:99:99", "", 0}},
		"a tag that the kernel took off": {message(t, 5, 0x0800, "portcullis:link:vlan", tcp4),
			Violation{now, "link", "vlan", "vlan", "10.77.0.2", "203.0.113.10", 8443}},
		"cut off": {message(t, 2, 0x0800, "portcullis:forward:forward-tcp", tcp4[:10]),
			Violation{now, "forward", "forward-tcp", "ip", "52:54:00:99:99:99", "", 0}},
	} {
		got, ok := DecodeMessage(c.b, "", now)
		if !ok || got != c.want {
			t.Errorf("%s: %+v %v, want %+v", name, got, ok, c.want)
		}
	}
	for name, b := range map[string][]byte{
		"another's prefix": message(t, 2, 0x0800, "ufw: block", tcp4), "empty": nil, "header only": {2, 0, 0, 77},
		"broken attribute": {2, 0, 0, 77, 255, 0, 10, 0},
	} {
		if v, ok := DecodeMessage(b, "", now); ok {
			t.Errorf("%s: read as %+v", name, v)
		}
	}
}

func TestRingKeepsTheNewest(t *testing.T) {
	var r Ring
	if len(r.Newest()) != 0 {
		t.Error("a new ring is not empty")
	}
	for i := range Kept + 10 {
		r.Add(Violation{Port: uint16(i)})
		if n := r.Newest(); n[0].Port != uint16(i) || len(n) != min(i+1, Kept) {
			t.Fatalf("after %d: %d kept, the first is %d", i+1, len(n), n[0].Port)
		}
	}
	if n := r.Newest(); n[Kept-1].Port != 10 {
		t.Errorf("the oldest kept is %d", n[Kept-1].Port)
	}
}

func FuzzDecodePacket(f *testing.F) {
	f.Add(message(f, 2, 0x0800, "portcullis:forward:forward-tcp", tcp4))
	f.Add(message(f, 5, 0x86dd, "portcullis:link:ip6", udp6))
	f.Add(message(f, 5, 0x0806, "portcullis:link:arp-spoof", arp))
	f.Add(message(f, 5, 0x8100, "portcullis:link:vlan", nil))
	f.Add([]byte{2, 0, 0, 77, 255, 0, 10, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, ok := DecodeMessage(b, "", time.Time{})
		if ok && v.Protocol == "" {
			t.Fatalf("%x: no protocol in %+v", b, v)
		}
		if !ok && v != (Violation{}) {
			t.Fatalf("%x: refused, but %+v", b, v)
		}
	})
}

// The evidence of one port is not that of another, even in the same NFLOG group.
func TestPrefixOfAnotherPort(t *testing.T) {
	for _, c := range []struct {
		prefix, pc string
		ok         bool
	}{
		{"portcullis:link:mac-spoof\x00", "", true},
		{"portcullis.rack-1:link:mac-spoof\x00", "rack-1", true},
		{"portcullis.rack-1:link:mac-spoof", "", false},
		{"portcullis:link:mac-spoof", "rack-1", false},
		{"portcullis.rack-11:link:mac-spoof", "rack-1", false},
		{"portcullis.rack-1:link:mac-spoof", "rack-11", false},
		{"portcullis.:link:mac-spoof", "", false},
	} {
		direction, reason, ok := ParsePrefix(c.prefix, c.pc)
		if ok != c.ok || ok && (direction != "link" || reason != "mac-spoof") {
			t.Errorf("%q for %q: %q %q %t", c.prefix, c.pc, direction, reason, ok)
		}
	}
}
