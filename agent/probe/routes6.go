package probe

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// routes6 reads /proc/net/ipv6_route and keeps what has a gateway: address and
// length of the destination, of the source, gateway, metric, counts, flags, link.
func (p *Net) routes6() (out []protocol.Route, err error) {
	b, err := read(p.Proc, "net/ipv6_route")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without IPv6
	}
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) != 10 {
			return nil, fmt.Errorf("ipv6_route: line %.120q", l)
		}
		to, err := hex.DecodeString(f[0])
		bits, err1 := strconv.ParseUint(f[1], 16, 8)
		gateway, err2 := hex.DecodeString(f[4])
		if err != nil || err1 != nil || err2 != nil || len(to) != 16 || len(gateway) != 16 || bits > 128 {
			return nil, fmt.Errorf("ipv6_route: line %.120q", l)
		}
		via := netip.AddrFrom16([16]byte(gateway))
		if via.IsUnspecified() {
			continue
		}
		if len(out) == protocol.MaxRoutes {
			return nil, fmt.Errorf("more than %d routes", protocol.MaxRoutes)
		}
		out = append(out, protocol.Route{To: netip.PrefixFrom(netip.AddrFrom16([16]byte(to)), int(bits)).String(), Gateway: via.String(), Link: clean(f[9])})
	}
	return out, nil
}

// netlinkRules lists the rules that choose a routing table, without the three
// that every kernel begins with (fib4_rules.c, fib6_rules.c).
func netlinkRules() (out []string, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.RuleList(family)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
		for _, r := range list {
			if usualRule(r) || len(out) == protocol.MaxRoutes {
				continue
			}
			out = append(out, clean(r.String()))
		}
	}
	return out, nil
}

func usualRule(r netlink.Rule) bool {
	plain := r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && r.Mark == 0 && !r.Invert
	prio := max(r.Priority, 0) // the library's word for the first of all is -1
	return plain && (prio == 0 && r.Table == unix.RT_TABLE_LOCAL || prio == 32766 && r.Table == unix.RT_TABLE_MAIN ||
		prio == 32767 && r.Table == unix.RT_TABLE_DEFAULT)
}
