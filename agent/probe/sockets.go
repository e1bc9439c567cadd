package probe

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"portcullis/attestserver/protocol"
)

// parseRoutes reads /proc/net/route: names, then addresses in hex as they lie
// in memory (net/ipv4/fib_trie.c).
func parseRoutes(s string) (out []protocol.Route, err error) {
	_, s, _ = strings.Cut(s, "\n")
	for l := range strings.Lines(s) {
		f := strings.Fields(l)
		if len(f) == 0 {
			continue
		}
		if len(f) < 8 {
			return nil, fmt.Errorf("routes: line %.80q", l)
		}
		if len(out) == protocol.MaxRoutes {
			return nil, fmt.Errorf("routes: more than %d", protocol.MaxRoutes)
		}
		to, err1 := address4(f[1])
		gateway, err2 := address4(f[2])
		mask, err3 := address4(f[7])
		if err1 != nil || err2 != nil || err3 != nil {
			return nil, fmt.Errorf("routes: line %.80q", l)
		}
		bits := 0
		for m := binary.BigEndian.Uint32(mask.AsSlice()); m&(1<<31) != 0; m <<= 1 {
			bits++
		}
		out = append(out, protocol.Route{To: netip.PrefixFrom(to, bits).String(), Gateway: gateway.String(), Link: clean(f[0])})
	}
	return out, nil
}

// address4 reads an IPv4 address in hex as it lies in memory.
func address4(s string) (netip.Addr, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 {
		return netip.Addr{}, fmt.Errorf("address %.16q", s)
	}
	if littleEndian {
		slices.Reverse(b)
	}
	return netip.AddrFrom4([4]byte(b)), nil
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// listeners names the TCP sockets that listen and the UDP sockets that are bound
// and not connected, other than on loopback (proc_net_tcp.rst).
func (p *Net) listeners() (out []string) {
	for _, f := range []struct{ name, state string }{{"tcp", "0A"}, {"tcp6", "0A"}, {"udp", "07"}, {"udp6", "07"}} {
		b, err := read(p.Proc, "net", f.name)
		if err != nil {
			continue // a kernel without IPv6
		}
		for _, l := range strings.Split(string(b), "\n")[1:] {
			w := strings.Fields(l)
			if len(w) < 4 || w[3] != f.state {
				continue
			}
			if at, ok := listening(w[1]); ok && len(out) < protocol.MaxSockets {
				out = append(out, f.name+" "+at)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// listening writes "0100007F:9683" as an address; ok is false for loopback.
func listening(s string) (string, bool) {
	host, port, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	raw, err2 := hex.DecodeString(host)
	if err != nil || err2 != nil || len(raw)%4 != 0 {
		return "", false
	}
	for i := 0; i < len(raw) && littleEndian; i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	a, ok := netip.AddrFromSlice(raw)
	if !ok || a.Unmap().IsLoopback() {
		return "", false
	}
	return netip.AddrPortFrom(a, uint16(n)).String(), true
}

// packetSockets counts the lines of /proc/net/packet.
func (p *Net) packetSockets() int {
	b, err := read(p.Proc, "net/packet")
	if err != nil {
		return 0 // a kernel without packet sockets
	}
	return max(len(strings.Split(strings.TrimSpace(string(b)), "\n"))-1, 0)
}

// rawSockets counts the lines of /proc/net/raw and raw6 by protocol, which stands where
// other sockets have the port (net/ipv4/raw.c). Sockets for pings (/proc/net/icmp) get the
// answers to their own questions only and are none.
func (p *Net) rawSockets() (out []protocol.RawSocket) {
	for _, f := range []struct{ file, family string }{{"raw", "ip"}, {"raw6", "ip6"}} {
		b, err := read(p.Proc, "net", f.file)
		if err != nil {
			continue // a kernel without IPv6
		}
		var count [256]int
		for _, l := range strings.Split(string(b), "\n")[1:] {
			w := strings.Fields(l)
			if len(w) < 2 {
				continue
			}
			_, number, _ := strings.Cut(w[1], ":")
			if n, err := strconv.ParseUint(number, 16, 8); err == nil {
				count[n]++
			}
		}
		for n, sockets := range count {
			if sockets > 0 {
				out = append(out, protocol.RawSocket{Family: f.family, Protocol: n, Sockets: sockets})
			}
		}
	}
	return out
}

// radios names what sends by radio.
func (p *Net) radios() (out []string) {
	for _, class := range []string{"ieee80211", "bluetooth"} {
		for _, d := range p.list("class/" + class + "/*") {
			if len(out) < protocol.MaxRadios {
				out = append(out, clean(class+" "+filepath.Base(d)))
			}
		}
	}
	return out
}
