// Package policy says what may pass the PC's port: the fixed facts of the cable,
// the phase of the current boot session, and the grants. It is pure; gatewayd's
// server moves it, ruleset turns it into tables. A value made by its
// constructors is valid.
package policy

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"portcullis/internal/config"
)

// Phase of the PC's port. Everything that a phase does not name is dropped.
type Phase string

// The phases, as in api/portcullis/v1 gateway.proto.
const (
	Idle       Phase = "idle"       // a boot request (UDP 67 and 4011) is heard
	Boot       Phase = "boot"       // + TFTP, boot HTTP, agent channel
	Attest     Phase = "attest"     // boot request and agent channel
	Run        Phase = "run"        // as attest, + the grants; ends by itself
	Quarantine Phase = "quarantine" // as attest; established grant flows are cut
)

// Port is what never changes while gatewayd runs: the cable and its limits.
type Port struct {
	Name      string // of its PC among several of one Pi, as config.ForPC takes it; "" where there is one
	Interface string // the PC's port
	Uplink    string // where grants leave; "" = nowhere
	Address   netip.Prefix
	PC        netip.Addr // what the PC is leased unless a session says otherwise
	MAC       net.HardwareAddr
	HTTPPort  uint16
	Agent     uint16 // TCP port of the agent channel

	BanAfter  int           // forbidden packets within BanWindow
	BanWindow time.Duration //
	BanFor    time.Duration
	LogGroup  uint16 // NFLOG group of the evidence
}

// NewPort takes the facts from a valid configuration.
func NewPort(c *config.Config) (Port, error) {
	mac, err := net.ParseMAC(c.Link.PCMAC)
	if err != nil || len(mac) != 6 {
		return Port{}, fmt.Errorf("policy: PC's MAC %q is not six bytes", c.Link.PCMAC)
	}
	p := Port{
		Name: c.PC, Interface: c.Link.Interface, Uplink: c.Gateway.Uplink, Address: c.Link.Address, PC: c.Link.PCAddress, MAC: mac,
		HTTPPort: c.PXE.HTTPPort, Agent: c.Attest.Port,
		BanAfter: c.Gateway.BanAfter, BanWindow: c.Gateway.BanWindow, BanFor: c.Gateway.BanFor, LogGroup: c.Gateway.NFLogGroup,
	}
	switch {
	case p.Interface == "" || len(p.Interface) > 15 || len(p.Uplink) > 15:
		return Port{}, fmt.Errorf("policy: interface names have 1 to 15 bytes")
	case !p.Address.Addr().Is4() || !p.PC.Is4() || !p.Address.Contains(p.PC):
		return Port{}, fmt.Errorf("policy: %s is not a host of %s", p.PC, p.Address)
	case p.BanAfter < 1 || p.BanAfter > 1000 || p.BanWindow <= 0 || p.BanFor <= 0:
		return Port{}, fmt.Errorf("policy: ban after %d in %s for %s is out of range", p.BanAfter, p.BanWindow, p.BanFor)
	}
	return p, nil
}

// Policy is what the kernel has to enforce at one moment.
type Policy struct {
	Port       Port
	Phase      Phase
	Session    string // of the current boot; "" only while Idle
	Generation uint32 // 1..2^24-1, a new one each boot session: no flow of an older session is known
	Address    netip.Addr
	Grants     []Grant // of this session; they pass in Run only, and those without remaining time not at all
	RunFor     time.Duration
}

// Initial is the policy of a port that has seen no boot.
func Initial(p Port) Policy {
	return Policy{Port: p, Phase: Idle, Generation: 1, Address: p.PC}
}
