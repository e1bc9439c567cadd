package ruleset

import (
	"net/netip"

	"portcullis/gateway/policy"
)

// Names of the sets.
const (
	banSet    = "ban"
	strikeSet = "strikes"
	runSet    = "run"
	grantSet  = "grants"

	banSize = 64
)

// BanSet, RunSet and GrantSet name the sets that the kernel's owner reads back.
const (
	BanSet   = banSet
	RunSet   = runSet
	GrantSet = grantSet
)

func banSets(p policy.Port) []*Set {
	sets := []*Set{{Name: banSet, Type: KeyIfName, Size: banSize, Dynamic: true, Kept: true}}
	if p.BanAfter > 1 {
		// The kernel frees the dead once a second; there is room for those of several windows.
		sets = append(sets, &Set{Name: strikeSet, Type: KeyMark, Size: uint32(4*p.BanAfter + 16), Dynamic: true})
	}
	return sets
}

// linkTable binds the cable: one MAC, one address, ARP and IPv4 only. It sits
// before conntrack and the IP stack, which therefore see nothing else.
func linkTable(pol policy.Policy) *Table {
	p := pol.Port
	ingress := &Chain{
		Name: "ingress-" + p.Interface,
		Hook: &Hook{Type: "filter", Point: "ingress", Device: p.Interface, Priority: -500},
		Rules: []Rule{
			{ether(Equal, etherVLAN), reject(vlan)},
			{ether(Equal, etherQinQ), reject(vlan)},
			{hardware(EtherSrc, NotEqual, p.MAC), reject(macSpoof)},
			{ether(Equal, etherLLDP), reject(lldp)},
			{ether(Equal, etherEAPOL), reject(eapol)},
			{number8(PktType, Equal, packetMulticast), reject(groupCast)},
			{ether(Equal, etherIPv6), reject(ip6)},
			{ether(Equal, etherARP), gotoChain("link-arp")},
			{ether(Equal, etherIPv4), gotoChain("link-ip")},
			{anyHeader, reject(etherOther)},
			// No frame of the cable is without a header: this is our own broadcast, which the kernel loops back.
			{reject(looped)},
		},
	}
	arp := &Chain{Name: "link-arp", Rules: []Rule{
		{Match{Field: ARPHeader, Op: NotEqual, Value: []byte{0, 1, 8, 0, 6, 4}, Shown: "ethernet ipv4"}, reject(arpSpoof)},
		{number16(ARPOp, NotEqual, 1), number16(ARPOp, NotEqual, 2), reject(arpSpoof)},
		{hardware(ARPMAC, NotEqual, p.MAC), reject(arpSpoof)},
		// A probe (RFC 5227) asks with sender 0.0.0.0 and teaches nobody anything.
		{address(ARPIP, NotEqual, pol.Address), address(ARPIP, NotEqual, netip.IPv4Unspecified()), reject(arpSpoof)},
		// pkttype host or broadcast: a frame for another machine is not for us to forward.
		{number8(PktType, NotEqual, packetHost), number8(PktType, NotEqual, packetBroadcast), reject(otherHost)},
		{accept},
	}}
	ip := &Chain{Name: "link-ip", Rules: []Rule{
		{Match{Field: IPVersion, Op: NotEqual, Value: []byte{0x45}, Shown: "0x45"}, reject(ipOptions)},
		{number8(PktType, NotEqual, packetHost), number8(PktType, NotEqual, packetBroadcast), reject(otherHost)},
		// Neither netboot, TCP nor QUIC sends fragments; conntrack would keep them unseen.
		{fragment, reject(fragmented)},
		{address(IPSrc, Equal, netip.IPv4Unspecified()), number8(IPProto, Equal, protoUDP), number16(DstPort, Equal, portDHCP), accept},
		{address(IPSrc, NotEqual, pol.Address), reject(ipSpoof)},
		{In{Fields: []Field{IIfName}, Set: banSet}, number8(IPProto, Equal, protoUDP), number16(DstPort, Equal, portDHCP), accept},
		{In{Fields: []Field{IIfName}, Set: banSet}, number8(IPProto, Equal, protoUDP), number16(DstPort, Equal, portProxyDHCP), accept},
		{In{Fields: []Field{IIfName}, Set: banSet}, number8(IPProto, Equal, protoTCP), number16(DstPort, Equal, p.Agent), accept},
		{In{Fields: []Field{IIfName}, Set: banSet}, reject(linkBanned)},
		{accept},
	}}
	// Packet sockets come by here too, so nothing of the Pi's other networks leaks by ARP, IPv6 or LLDP.
	egress := &Chain{
		Name: "egress-" + p.Interface,
		Hook: &Hook{Type: "filter", Point: "egress", Device: p.Interface, Priority: 0},
		Rules: []Rule{
			{ether(Equal, etherARP), address(ARPIP, Equal, p.Address.Addr()), accept},
			// What wakes the PC, and no other machine.
			{ether(Equal, etherWake), hardware(EtherDst, Equal, p.MAC), magic(p.MAC), accept},
			{ether(NotEqual, etherIPv4), reject(linkOut)},
			{In{Fields: []Field{OIfName}, Set: banSet}, number8(IPProto, Equal, protoUDP), number16(SrcPort, Equal, portDHCP), accept},
			{In{Fields: []Field{OIfName}, Set: banSet}, number8(IPProto, Equal, protoUDP), number16(SrcPort, Equal, portProxyDHCP), accept},
			{In{Fields: []Field{OIfName}, Set: banSet}, number8(IPProto, Equal, protoTCP), number16(SrcPort, Equal, p.Agent), accept},
			{In{Fields: []Field{OIfName}, Set: banSet}, reject(linkOut)},
			{accept},
		},
	}
	return &Table{
		Family: "netdev", Name: LinkTableOf(p.Name),
		Counters: counters(linkReasons),
		Sets:     banSets(p),
		Chains:   append([]*Chain{ingress, egress, arp, ip}, endings(p, linkReasons)...),
	}
}
