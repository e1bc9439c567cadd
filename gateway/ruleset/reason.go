package ruleset

import "portcullis/gateway/policy"

// Reason is why a packet was dropped. Its name is the counter, the word in the
// log and in the documents.
type Reason struct {
	Name      string
	Direction string // forward, input, output or link
	Strike    bool   // counts towards a ban
	Silent    bool   // counted, but no evidence is kept: the tail of a closed flow, or our own packet
}

// Prefix is what NFLOG carries: PREFIX:direction:reason. PrefixOf has that of a rack's port.
const Prefix = "portcullis"

// BanReason stands in the evidence of the packet that brought the ban.
const BanReason = "ban"

// The reasons of the link layer. What honest firmware and NICs send by themselves
// (multicast, LLDP, EAPOL, odd ethertypes) is dropped and counted, and does not ban.
var (
	macSpoof   = Reason{Name: "mac-spoof", Direction: "link", Strike: true}
	otherHost  = Reason{Name: "other-host", Direction: "link"}
	groupCast  = Reason{Name: "multicast", Direction: "link"}
	vlan       = Reason{Name: "vlan", Direction: "link", Strike: true}
	lldp       = Reason{Name: "lldp", Direction: "link"}
	eapol      = Reason{Name: "eapol", Direction: "link"}
	ip6        = Reason{Name: "ip6", Direction: "link", Strike: true}
	etherOther = Reason{Name: "ethertype", Direction: "link"}
	arpSpoof   = Reason{Name: "arp-spoof", Direction: "link", Strike: true}
	ipSpoof    = Reason{Name: "ip-spoof", Direction: "link", Strike: true}
	fragmented = Reason{Name: "fragment", Direction: "link", Strike: true}
	ipOptions  = Reason{Name: "ip-options", Direction: "link", Strike: true}
	linkBanned = Reason{Name: "banned", Direction: "link"}
	looped     = Reason{Name: "looped", Direction: "link", Silent: true} // the kernel's copy of the Pi's own broadcast
	linkOut    = Reason{Name: "egress", Direction: "link", Silent: true}
)

// The reasons of the IP layer. The tail of a flow that an ended phase or grant
// cut, and knocks at a service that has just closed, do not ban: an honest PC sends both.
var (
	forwardIP6   = Reason{Name: "forward-ip6", Direction: "forward", Strike: true}
	forwardTCP   = Reason{Name: "forward-tcp", Direction: "forward", Strike: true}
	forwardUDP   = Reason{Name: "forward-udp", Direction: "forward", Strike: true}
	forwardDNS   = Reason{Name: "forward-dns", Direction: "forward", Strike: true}
	forwardICMP  = Reason{Name: "forward-icmp", Direction: "forward", Strike: true}
	forwardOther = Reason{Name: "forward-other", Direction: "forward", Strike: true}
	inputTCP     = Reason{Name: "input-tcp", Direction: "input", Strike: true}
	inputUDP     = Reason{Name: "input-udp", Direction: "input", Strike: true}
	inputICMP    = Reason{Name: "input-icmp", Direction: "input", Strike: true}
	inputOther   = Reason{Name: "input-other", Direction: "input", Strike: true}
	broadcasts   = Reason{Name: "broadcast", Direction: "input"}
	noService    = Reason{Name: "closed-service", Direction: "input"}
	noGrant      = Reason{Name: "grant-closed", Direction: "forward"}
	icmpError    = Reason{Name: "icmp-error", Direction: "input", Silent: true}
	staleFlow    = Reason{Name: "stale-flow", Direction: "forward", Silent: true}
	ipBanned     = Reason{Name: "banned", Direction: "forward"}
	inbound      = Reason{Name: "inbound", Direction: "forward"}
	outputDrop   = Reason{Name: "output", Direction: "output", Silent: true}
	forwardLate  = Reason{Name: "forward-backstop", Direction: "forward"}
	inputLate    = Reason{Name: "input-backstop", Direction: "input"}
)

var linkReasons = []Reason{macSpoof, otherHost, groupCast, vlan, lldp, eapol, ip6, etherOther, arpSpoof, ipSpoof, fragmented, ipOptions, linkBanned, looped, linkOut}

var ipReasons = []Reason{forwardIP6, forwardTCP, forwardUDP, forwardDNS, forwardICMP, forwardOther, inputTCP, inputUDP, inputICMP, inputOther,
	broadcasts, noService, noGrant, icmpError, staleFlow, ipBanned, inbound, outputDrop, forwardLate, inputLate}

// Silent tells whether a counter counts what nobody attempted.
func Silent(counter string) bool {
	for _, list := range [][]Reason{linkReasons, ipReasons} {
		for _, r := range list {
			if r.Name == counter {
				return r.Silent
			}
		}
	}
	return false
}

// Evidence at most evidenceRate packets a second of one reason; the counters count them all.
const (
	evidenceRate  = 20
	evidenceBurst = 40
)

func (r Reason) chain() string { return "no-" + r.Name }

// reject is the way to the reason's chain.
func reject(r Reason) Verdict { return gotoChain(r.chain()) }

func (r Reason) prefix(p policy.Port) string {
	return PrefixOf(p.Name) + ":" + r.Direction + ":" + r.Name
}

// endings makes the chains in which packets end: counted, shown, dropped.
func endings(p policy.Port, reasons []Reason) []*Chain {
	var chains []*Chain
	for _, r := range reasons {
		c := &Chain{Name: r.chain(), Rules: []Rule{{Count(r.Name)}}}
		if !r.Silent {
			c.Rules = append(c.Rules, Rule{Log{Prefix: r.prefix(p), Group: p.LogGroup, Rate: evidenceRate, Burst: evidenceBurst}})
		}
		if r.Strike {
			c.Rules = append(c.Rules, Rule{gotoChain("strike")})
		} else {
			c.Rules = append(c.Rules, Rule{drop})
		}
		chains = append(chains, c)
	}
	return append(chains, strike(p))
}

// strike is an exact sliding window. BanAfter-1 slots are used in turn, each alive for
// BanWindow after its packet: a packet that finds its slot alive is the BanAfter-th
// within the window, and bans the port in passing. A new phase begins with empty slots.
func strike(p policy.Port) *Chain {
	c := &Chain{Name: "strike"}
	if p.BanAfter > 1 {
		c.Rules = append(c.Rules, Rule{Slot{Set: strikeSet, Slots: uint32(p.BanAfter - 1), Timeout: p.BanWindow}, drop})
	}
	c.Rules = append(c.Rules,
		Rule{Update{Set: banSet, Field: IIfName, Timeout: p.BanFor}, Count(BanReason),
			Log{Prefix: PrefixOf(p.Name) + ":link:" + BanReason, Group: p.LogGroup}, drop},
		Rule{drop})
	return c
}

func counters(reasons []Reason) []string {
	names := make([]string, 0, len(reasons)+1)
	for _, r := range reasons {
		names = append(names, r.Name)
	}
	return append(names, BanReason)
}
