package ruleset

import (
	"encoding/binary"
	"net/netip"

	"portcullis/gateway/policy"
)

// Ports of the boot services: RFC 2131, PXE 2.1 §2.2.3, RFC 1350.
const (
	portDHCP      = 67
	portProxyDHCP = 4011
	portTFTP      = 69
	firstHighPort = 1024 // TFTP answers leave from a port of their own (RFC 1350 §4)
	maxGrants     = policy.MaxGrants
	prerouting    = -150 // behind conntrack (-200), before routing: every packet of the PC is seen and counted
	filter        = -10  // before the filter chains of others; a drop is final, an accept is not
	natSource     = 100
)

// Classes of flows; the mark of a flow is generation<<8 | class.
const (
	classBoot  = 1
	classAgent = 2
	classGrant = 3
)

// target is the key of the grant set as a rule reads it.
var (
	targetOut = []Field{IPDst, L4Proto, DstPort}
	targetIn  = []Field{IPSrc, L4Proto, SrcPort}
)

// Build describes what p needs of the kernel.
func Build(p policy.Policy) *Ruleset {
	return &Ruleset{Tables: []*Table{ipTable(p), linkTable(p)}}
}

func ipTable(p policy.Policy) *Table {
	port := p.Port
	sets := append(banSets(port),
		&Set{Name: runSet, Type: KeyIfName, Size: 1, Elements: running(p)},
		&Set{Name: grantSet, Type: KeyTarget, Size: maxGrants, Elements: grants(p)})
	chains := []*Chain{
		{Name: "prerouting", Hook: &Hook{Type: "filter", Point: "prerouting", Priority: prerouting},
			Rules: []Rule{{iif(port.Interface), gotoChain("from-pc")}}},
		{Name: "input", Hook: &Hook{Type: "filter", Point: "input", Priority: filter},
			Rules: []Rule{{iif(port.Interface), gotoChain("input-pc")}}},
		{Name: "forward", Hook: &Hook{Type: "filter", Point: "forward", Priority: filter},
			Rules: []Rule{{iif(port.Interface), gotoChain("forward-from-pc")}, {oif(port.Interface), gotoChain("forward-to-pc")}}},
		{Name: "output", Hook: &Hook{Type: "filter", Point: "output", Priority: filter},
			Rules: []Rule{{oif(port.Interface), gotoChain("output-to-pc")}}},
		{Name: "nat", Hook: &Hook{Type: "nat", Point: "postrouting", Priority: natSource}, Rules: masquerade(p)},
		fromPC(p), toPi(p), agent(p), inputPC(p), forwardFromPC(p), forwardToPC(p), outputToPC(p),
	}
	return &Table{Family: "inet", Name: IPTableOf(port.Name), Counters: counters(ipReasons), Sets: sets, Chains: append(chains, endings(port, ipReasons)...)}
}

func (k flows) of(class uint32) uint32 { return uint32(k)<<8 | class }

type flows uint32

func running(p policy.Policy) []Element {
	if p.Phase != policy.Run || p.RunFor <= 0 {
		return nil
	}
	return []Element{{Key: ifName(p.Port.Interface), Text: p.Port.Interface, Timeout: p.RunFor}}
}

// grants gives each target once, with the longest time that any grant leaves it.
func grants(p policy.Policy) []Element {
	var out []Element
	index := map[policy.Target]int{}
	for _, g := range p.Grants {
		if g.Left <= 0 {
			continue
		}
		if i, ok := index[g.Target]; ok {
			out[i].Timeout = max(out[i].Timeout, g.Left)
			continue
		}
		index[g.Target] = len(out)
		out = append(out, Element{Key: TargetKey(g.Target), Text: g.Target.String(), Timeout: g.Left})
	}
	return out
}

// TargetKey is the element of the grant set: each part padded to four bytes.
func TargetKey(t policy.Target) []byte {
	proto := byte(protoUDP)
	if t.Protocol == "tcp" {
		proto = protoTCP
	}
	key := append([]byte(nil), t.Address.AsSlice()...)
	key = append(key, proto, 0, 0, 0)
	key = binary.BigEndian.AppendUint16(key, t.Port)
	return append(key, 0, 0)
}

// fromPC decides every IP packet of the PC before it is routed.
func fromPC(p policy.Policy) *Chain {
	port := p.Port
	banned := In{Fields: []Field{IIfName}, Set: banSet}
	c := &Chain{Name: "from-pc", Rules: []Rule{
		{notIPv4, reject(forwardIP6)},
		{isUDP, number16(DstPort, Equal, portDHCP), address(IPDst, Equal, limitedBroadcast), accept},
		{isUDP, number16(DstPort, Equal, portDHCP), address(IPDst, Equal, port.Address.Addr()), accept},
		{isUDP, number16(DstPort, Equal, portProxyDHCP), address(IPDst, Equal, limitedBroadcast), accept},
		{isUDP, number16(DstPort, Equal, portProxyDHCP), address(IPDst, Equal, port.Address.Addr()), accept},
		{isTCP, number16(DstPort, Equal, port.Agent), address(IPDst, Equal, port.Address.Addr()), gotoChain("agent")},
		// Bans come before every flow that is known.
		{banned, reject(ipBanned)},
		{address(IPDst, Equal, port.Address.Addr()), gotoChain("to-pi")},
		{address(IPDst, Equal, limitedBroadcast), reject(broadcasts)},
		{address(IPDst, Equal, port.Broadcast()), reject(broadcasts)},
		{multicast, reject(broadcasts)},
	}}
	if p.Phase == policy.Run {
		m := flows(p.Generation).of(classGrant)
		live := In{Fields: []Field{IIfName}, Set: runSet}
		granted := In{Fields: targetOut, Set: grantSet}
		c.Rules = append(c.Rules,
			Rule{live, granted, ctOld, mark(Equal, m), accept},
			Rule{live, granted, ctNew, isTCP, synOnly, SetMark(m), accept},
			Rule{live, granted, ctNew, isUDP, SetMark(m), accept})
	}
	c.Rules = append(c.Rules,
		Rule{In{Fields: targetOut, Set: grantSet}, reject(noGrant)},
		Rule{ctKnown, mark(NotEqual, 0), reject(staleFlow)},
		Rule{isTCP, number16(DstPort, Equal, 53), reject(forwardDNS)},
		Rule{isUDP, number16(DstPort, Equal, 53), reject(forwardDNS)},
		Rule{isTCP, reject(forwardTCP)},
		Rule{isUDP, reject(forwardUDP)},
		Rule{isICMP, reject(forwardICMP)},
		Rule{reject(forwardOther)})
	return c
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// toPi is what the phase lets the PC ask of the Pi beside DHCP and the agent channel.
func toPi(p policy.Policy) *Chain {
	c := &Chain{Name: "to-pi"}
	http := number16(DstPort, Equal, p.Port.HTTPPort)
	if p.Phase == policy.Boot {
		m := flows(p.Generation).of(classBoot)
		c.Rules = append(c.Rules,
			Rule{isUDP, number16(DstPort, Equal, portTFTP), SetMark(m), accept},
			Rule{isTCP, http, ctOld, mark(Equal, m), accept},
			Rule{isTCP, http, ctNew, synOnly, SetMark(m), accept},
			Rule{isUDP, ctOld, mark(Equal, m), accept})
	}
	c.Rules = append(c.Rules,
		// A client that closed its TFTP port early says so; that is no attack.
		Rule{isICMP, number8(ICMPType, Equal, 3), reject(icmpError)},
		Rule{ctKnown, mark(NotEqual, 0), reject(staleFlow)},
		Rule{isTCP, http, reject(noService)},
		Rule{isUDP, number16(DstPort, Equal, portTFTP), reject(noService)},
		Rule{isTCP, reject(inputTCP)},
		Rule{isUDP, reject(inputUDP)},
		Rule{isICMP, reject(inputICMP)},
		Rule{reject(inputOther)})
	return c
}

// agent is the channel that stays open to a banned or quarantined PC of a live session.
func agent(p policy.Policy) *Chain {
	c := &Chain{Name: "agent"}
	if p.Phase != policy.Idle {
		m := flows(p.Generation).of(classAgent)
		c.Rules = append(c.Rules, Rule{ctOld, mark(Equal, m), accept}, Rule{ctNew, synOnly, SetMark(m), accept})
	}
	c.Rules = append(c.Rules, Rule{reject(noService)})
	return c
}

func inputPC(p policy.Policy) *Chain {
	c := &Chain{Name: "input-pc", Rules: []Rule{
		{isIPv4, isUDP, number16(DstPort, Equal, portDHCP), accept},
		{isIPv4, isUDP, number16(DstPort, Equal, portProxyDHCP), accept},
	}}
	if p.Phase != policy.Idle {
		c.Rules = append(c.Rules, Rule{isIPv4, isTCP, number16(DstPort, Equal, p.Port.Agent), mark(Equal, flows(p.Generation).of(classAgent)), accept})
	}
	if p.Phase == policy.Boot {
		c.Rules = append(c.Rules, Rule{isIPv4, mark(Equal, flows(p.Generation).of(classBoot)), accept})
	}
	c.Rules = append(c.Rules, Rule{reject(inputLate)})
	return c
}

func forwardFromPC(p policy.Policy) *Chain {
	c := &Chain{Name: "forward-from-pc"}
	if p.Phase == policy.Run && p.Port.Uplink != "" {
		c.Rules = append(c.Rules, Rule{isIPv4, oif(p.Port.Uplink), isTCP, syn, ClampMSS{}}, Rule{isIPv4, oif(p.Port.Uplink), In{Fields: []Field{IIfName}, Set: runSet}, mark(Equal, flows(p.Generation).of(classGrant)),
			In{Fields: targetOut, Set: grantSet}, accept})
	}
	c.Rules = append(c.Rules, Rule{reject(forwardLate)})
	return c
}

// forwardToPC lets answers of granted flows in; nobody outside begins a flow.
func forwardToPC(p policy.Policy) *Chain {
	c := &Chain{Name: "forward-to-pc", Rules: []Rule{{In{Fields: []Field{OIfName}, Set: banSet}, reject(staleFlow)}}}
	if p.Phase == policy.Run && p.Port.Uplink != "" {
		c.Rules = append(c.Rules, Rule{isIPv4, iif(p.Port.Uplink), isTCP, syn, ClampMSS{}}, Rule{isIPv4, iif(p.Port.Uplink), In{Fields: []Field{OIfName}, Set: runSet}, ctOld, ctReply,
			mark(Equal, flows(p.Generation).of(classGrant)), In{Fields: targetIn, Set: grantSet}, accept})
	}
	c.Rules = append(c.Rules, Rule{ctKnown, mark(NotEqual, 0), reject(staleFlow)}, Rule{reject(inbound)})
	return c
}

// outputToPC is what the Pi itself may say to the PC.
func outputToPC(p policy.Policy) *Chain {
	c := &Chain{Name: "output-to-pc", Rules: []Rule{
		{isIPv4, isUDP, number16(SrcPort, Equal, portDHCP), accept},
		{isIPv4, isUDP, number16(SrcPort, Equal, portProxyDHCP), accept},
	}}
	if p.Phase != policy.Idle {
		c.Rules = append(c.Rules, Rule{isIPv4, isTCP, number16(SrcPort, Equal, p.Port.Agent), ctOld, mark(Equal, flows(p.Generation).of(classAgent)), accept})
	}
	c.Rules = append(c.Rules, Rule{In{Fields: []Field{OIfName}, Set: banSet}, reject(outputDrop)})
	if p.Phase == policy.Boot {
		m := flows(p.Generation).of(classBoot)
		c.Rules = append(c.Rules,
			Rule{isIPv4, ctOld, mark(Equal, m), accept},
			Rule{isIPv4, isUDP, number16(SrcPort, AtLeast, firstHighPort), address(IPDst, Equal, p.Address), ctNew, SetMark(m), accept})
	}
	c.Rules = append(c.Rules, Rule{reject(outputDrop)})
	return c
}

func masquerade(p policy.Policy) []Rule {
	if p.Phase != policy.Run || p.Port.Uplink == "" {
		return nil
	}
	return []Rule{{oif(p.Port.Uplink), mark(Equal, flows(p.Generation).of(classGrant)), Masquerade{}}}
}
