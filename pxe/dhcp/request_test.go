package dhcp

import (
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/pxe/session"
)

func TestUserClassInBothForms(t *testing.T) {
	tests := []struct {
		option string
		want   bool
	}{
		{"iPXE", true}, {"\x04iPXE", true}, {"\x03foo\x04iPXE", true}, {"\x04iPXE\x03foo", true},
		{"", false}, {"ipxe", false}, {"iPXE\x00", false}, {"\x05iPXE", false}, {"\x00\x04iPXE", false}, {"\x03iPXE", false}, {"\xff", false},
	}
	for _, tt := range tests {
		if got := hasUserClass([]byte(tt.option), "iPXE"); got != tt.want {
			t.Errorf("%q: %v", tt.option, got)
		}
	}
	for _, class := range []string{"iPXE", "\x04iPXE"} {
		raw := with(t, "ovmf-pxe-discover", set(dhcpv4.OptionUserClassInformation, []byte(class)...))
		if r, reason := Parse(raw, anybody, PortServer, policy); reason != "" || r.Firmware != session.IPXE {
			t.Errorf("%q: %q, %q", class, r.Firmware, reason)
		}
	}
}

func TestFirstKnownArchitectureCounts(t *testing.T) {
	tests := []struct {
		option string
		want   Arch
		ok     bool
	}{
		{"\x00\x07", 7, true}, {"\x00\x09", 9, true}, {"\x77\x77\x00\x07", 7, true}, {"\x00\x07\x00\x00", 7, true},
		{"\x00\x29", 41, true}, {"", 0, false}, {"\x07", 0, false}, {"\x07\x00", 0, false},
	}
	for _, tt := range tests {
		if got, ok := firstKnown([]byte(tt.option)); got != tt.want || ok != tt.ok {
			t.Errorf("%x: %d, %v", tt.option, got, ok)
		}
	}
	raw := with(t, "ovmf-pxe-discover", set(dhcpv4.OptionClientSystemArchitectureType, 0, 9))
	if d := ask(raw, anybody, PortServer, policy, live(session.UEFIPXE)); d.Reason != "" {
		t.Errorf("arch 9: %s", d.Reason)
	}
}

func TestMachineIdentifierOnlyWhenSent(t *testing.T) {
	for _, edit := range []func(*dhcpv4.DHCPv4){
		without(dhcpv4.OptionClientMachineIdentifier), set(dhcpv4.OptionClientMachineIdentifier), set(dhcpv4.OptionClientMachineIdentifier, 0, 1),
	} {
		d := ask(with(t, "ovmf-pxe-discover", edit), anybody, PortServer, policy, live(session.UEFIPXE))
		if d.Reason != "" || d.Reply.Options.Has(dhcpv4.OptionClientMachineIdentifier) {
			t.Errorf("%s: %v", d.Reason, d.Reply)
		}
	}
}

func TestOption66OnlyWhenAskedFor(t *testing.T) {
	raw := with(t, "ovmf-pxe-discover", set(dhcpv4.OptionParameterRequestList, 1, 3, 67))
	if d := ask(raw, anybody, PortServer, policy, live(session.UEFIPXE)); d.Reason != "" || d.Reply.Options.Has(dhcpv4.OptionTFTPServerName) {
		t.Errorf("%s: %v", d.Reason, d.Reply)
	}
}

func TestAgentGetsItsSession(t *testing.T) {
	raw := with(t, "ovmf-http-discover", func(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptClassIdentifier(AgentClass)) })
	r, reason := Parse(raw, anybody, PortServer, policy)
	if reason != "" || r.Boots() {
		t.Fatalf("reason %q, boots %v: the image's own client must not end its boot", reason, r.Boots())
	}
	d := Decide(r, policy, live(session.UEFIPXE))
	if got := string(d.Reply.Options.Get(optionSession)); got != sid {
		t.Errorf("option 224 %q", got)
	}
	if got := d.Reply.Options.Get(optionAgentPort); string(got) != "\x1d\x14" {
		t.Errorf("option 225 %x", got)
	}
	if got := string(d.Reply.Options.Get(dhcpv4.OptionBootfileName)); got != "http://10.77.0.1/b/"+sid+"/" {
		t.Errorf("option 67 %q", got)
	}
}

func TestInformIsAnsweredWithoutALease(t *testing.T) {
	raw := with(t, "ovmf-http-discover", func(d *dhcpv4.DHCPv4) {
		typed(dhcpv4.MessageTypeInform)(d)
		d.ClientIPAddr = lessee.AsSlice()
	})
	d := ask(raw, anybody, PortServer, policy, live(session.UEFIHTTP))
	if d.Reason != "" || d.Reply.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || !d.Reply.YourIPAddr.IsUnspecified() {
		t.Errorf("%s %v", d.Reason, d.Reply)
	}
}
