package ruleset

import (
	"fmt"
	"strings"
	"time"
)

// Source tells where a Field is read from.
type Source int

// The sources of fields.
const (
	FromLink      Source = iota // ethernet header
	FromNetwork                 // IP or ARP header
	FromTransport               // TCP, UDP or ICMP header
	FromMeta
	FromConntrack
)

// Field is a value of a packet: bytes of a header, or a key of meta or conntrack.
type Field struct {
	Name   string
	Source Source
	Offset uint32 // in the header
	Key    uint32 // of meta or conntrack, as linux/netfilter/nf_tables.h numbers them
	Len    uint32 // bytes
}

// Keys of linux/netfilter/nf_tables.h, enum nft_meta_keys and enum nft_ct_keys.
const (
	metaIIfName = 6
	metaOIfName = 7
	metaNFProto = 15
	metaL4Proto = 16
	metaPktType = 19

	ctState     = 0
	ctDirection = 1
	ctMark      = 3
)

// The fields that the rules look at.
var (
	IIfName   = Field{Name: "iifname", Source: FromMeta, Key: metaIIfName, Len: 16}
	OIfName   = Field{Name: "oifname", Source: FromMeta, Key: metaOIfName, Len: 16}
	NFProto   = Field{Name: "meta nfproto", Source: FromMeta, Key: metaNFProto, Len: 1}
	L4Proto   = Field{Name: "meta l4proto", Source: FromMeta, Key: metaL4Proto, Len: 1}
	PktType   = Field{Name: "meta pkttype", Source: FromMeta, Key: metaPktType, Len: 1}
	CTState   = Field{Name: "ct state", Source: FromConntrack, Key: ctState, Len: 4}
	CTDir     = Field{Name: "ct direction", Source: FromConntrack, Key: ctDirection, Len: 1}
	CTMark    = Field{Name: "ct mark", Source: FromConntrack, Key: ctMark, Len: 4}
	EtherDst  = Field{Name: "ether daddr", Source: FromLink, Offset: 0, Len: 6}
	EtherSrc  = Field{Name: "ether saddr", Source: FromLink, Offset: 6, Len: 6}
	EtherType = Field{Name: "ether type", Source: FromLink, Offset: 12, Len: 2}
	IPVersion = Field{Name: "@nh,0,8", Source: FromNetwork, Offset: 0, Len: 1}
	IPFrag    = Field{Name: "ip frag-off", Source: FromNetwork, Offset: 6, Len: 2}
	IPProto   = Field{Name: "ip protocol", Source: FromNetwork, Offset: 9, Len: 1}
	IPSrc     = Field{Name: "ip saddr", Source: FromNetwork, Offset: 12, Len: 4}
	IPDst     = Field{Name: "ip daddr", Source: FromNetwork, Offset: 16, Len: 4}
	WakeHead  = Field{Name: "@nh,0,96", Source: FromNetwork, Offset: 0, Len: 12}
	ARPHeader = Field{Name: "@nh,0,48", Source: FromNetwork, Offset: 0, Len: 6}
	ARPOp     = Field{Name: "arp operation", Source: FromNetwork, Offset: 6, Len: 2}
	ARPMAC    = Field{Name: "arp saddr ether", Source: FromNetwork, Offset: 8, Len: 6}
	ARPIP     = Field{Name: "arp saddr ip", Source: FromNetwork, Offset: 14, Len: 4}
	SrcPort   = Field{Name: "th sport", Source: FromTransport, Offset: 0, Len: 2}
	DstPort   = Field{Name: "th dport", Source: FromTransport, Offset: 2, Len: 2}
	ICMPType  = Field{Name: "icmp type", Source: FromTransport, Offset: 0, Len: 1}
	TCPFlags  = Field{Name: "tcp flags", Source: FromTransport, Offset: 13, Len: 1}
)

// Match compares a field, masked when Mask is set, with a value.
type Match struct {
	Field Field
	Mask  []byte
	Op    Op
	Value []byte
	Shown string // the value in words
}

// Op is how Match compares.
type Op string

// Comparisons.
const (
	Equal    Op = "=="
	NotEqual Op = "!="
	AtLeast  Op = ">="
)

func (m Match) String() string {
	if m.Field == CTState { // a set of bits, one of which must be there
		return m.Field.Name + " " + m.Shown
	}
	op := " " + string(m.Op)
	if m.Op == Equal {
		op = ""
	}
	mask := ""
	if m.Mask != nil {
		mask = fmt.Sprintf(" & 0x%x", m.Mask)
	}
	return m.Field.Name + mask + op + " " + m.Shown
}

// In looks the joined fields up in a set.
type In struct {
	Fields []Field
	Set    string
}

func (l In) String() string { return joinFields(l.Fields) + " @" + l.Set }

func joinFields(fields []Field) string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.Name
	}
	return strings.Join(names, " . ")
}

// Count adds the packet to a named counter.
type Count string

func (c Count) String() string { return fmt.Sprintf("counter name %q", string(c)) }

// Log hands the packet to NFLOG. With Rate it stops the rule beyond that many
// a second, so it stands in a rule of its own: a drop never depends on it.
type Log struct {
	Prefix string
	Group  uint16
	Rate   uint64 // packets a second; 0 = all
	Burst  uint32
}

func (l Log) String() string {
	limit := ""
	if l.Rate > 0 {
		limit = fmt.Sprintf("limit rate %d/second burst %d packets ", l.Rate, l.Burst)
	}
	return fmt.Sprintf("%slog prefix %q group %d snaplen 256", limit, l.Prefix, l.Group)
}

// SetMark marks the flow.
type SetMark uint32

func (m SetMark) String() string { return fmt.Sprintf("ct mark set 0x%08x", uint32(m)) }

// Slot counts in a ring: it draws the next of Slots numbers in turn. When the set still has
// that number the rule stops here; otherwise the number is put in for Timeout.
type Slot struct {
	Set     string
	Slots   uint32
	Timeout time.Duration
}

func (s Slot) String() string {
	return fmt.Sprintf("slot (numgen inc mod %d) != @%s update @%s { slot timeout %s }", s.Slots, s.Set, s.Set, s.Timeout)
}

// Update puts a field into a set, or begins its time anew.
type Update struct {
	Set     string
	Field   Field
	Timeout time.Duration
}

func (u Update) String() string {
	return fmt.Sprintf("update @%s { %s timeout %s }", u.Set, u.Field.Name, u.Timeout)
}

// Verdict ends a rule.
type Verdict struct {
	Kind  string // accept, drop, goto
	Chain string
}

func (v Verdict) String() string { return strings.TrimSpace(v.Kind + " " + v.Chain) }

// ClampMSS lowers the segment size that a TCP SYN offers to what the route
// carries, both ways: the ICMP message that would say so does not reach the PC.
type ClampMSS struct{}

func (ClampMSS) String() string { return "tcp option maxseg size set rt mtu" }

// Masquerade gives the packet the address of the interface it leaves by.
type Masquerade struct{}

func (Masquerade) String() string { return "masquerade" }
