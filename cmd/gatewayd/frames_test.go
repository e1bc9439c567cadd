package main

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// The frames of the attacks are made by hand: no client would send them.

func etherFrame(dst, src string, etherType uint16, payload []byte) []byte {
	d, _ := net.ParseMAC(dst)
	s, _ := net.ParseMAC(src)
	f := append(append([]byte(nil), d...), s...)
	f = binary.BigEndian.AppendUint16(f, etherType)
	f = append(f, payload...)
	for len(f) < 60 {
		f = append(f, 0)
	}
	return f
}

func fromPC(etherType uint16, payload []byte) []byte {
	return etherFrame(gwMAC, pcMAC, etherType, payload)
}

type ipOpt struct {
	src, dst string
	proto    byte
	frag     uint16 // flags and offset
	options  []byte // multiple of four
}

func ipv4(o ipOpt, payload []byte) []byte {
	if o.src == "" {
		o.src = pcIP
	}
	src, dst := netip.MustParseAddr(o.src).As4(), netip.MustParseAddr(o.dst).As4()
	h := make([]byte, 20+len(o.options))
	h[0] = 0x40 | byte(len(h)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	binary.BigEndian.PutUint16(h[4:], 0x1234)
	binary.BigEndian.PutUint16(h[6:], o.frag)
	h[8], h[9] = 64, o.proto
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	copy(h[20:], o.options)
	binary.BigEndian.PutUint16(h[10:], checksum(h, 0))
	return append(h, payload...)
}

func checksum(b []byte, sum uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func pseudo(src, dst string, proto byte, n int) uint32 {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	sum := uint32(proto) + uint32(n)
	for _, b := range [][4]byte{s, d} {
		sum += uint32(b[0])<<8 + uint32(b[1]) + uint32(b[2])<<8 + uint32(b[3])
	}
	return sum
}

func udpTo(dst string, sport, dport uint16, data string) []byte {
	u := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(u, sport)
	binary.BigEndian.PutUint16(u[2:], dport)
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(data)))
	u = append(u, data...)
	binary.BigEndian.PutUint16(u[6:], checksum(u, pseudo(pcIP, dst, 17, len(u))))
	return fromPC(0x0800, ipv4(ipOpt{dst: dst, proto: 17}, u))
}

func tcpTo(dst string, sport, dport uint16, flags byte) []byte {
	return fromPC(0x0800, ipv4(ipOpt{dst: dst, proto: 6}, tcpSegment(dst, sport, dport, flags)))
}

func tcpSegment(dst string, sport, dport uint16, flags byte) []byte {
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t, sport)
	binary.BigEndian.PutUint16(t[2:], dport)
	binary.BigEndian.PutUint32(t[4:], 1000)
	t[12], t[13] = 5<<4, flags
	binary.BigEndian.PutUint16(t[14:], 64240)
	binary.BigEndian.PutUint16(t[16:], checksum(t, pseudo(pcIP, dst, 6, len(t))))
	return t
}

func echoTo(dst string) []byte {
	i := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(i[2:], checksum(i, 0))
	return fromPC(0x0800, ipv4(ipOpt{dst: dst, proto: 1}, i))
}

func arpFrom(mac, ip string, op uint16) []byte {
	hw, _ := net.ParseMAC(mac)
	a := []byte{0, 1, 8, 0, 6, 4}
	a = binary.BigEndian.AppendUint16(a, op)
	a = append(a, hw...)
	a = append(a, netip.MustParseAddr(ip).AsSlice()...)
	a = append(a, make([]byte, 6)...)
	a = append(a, netip.MustParseAddr(gwIP).AsSlice()...)
	return fromPC(0x0806, a)
}

func ipv6To(dst string) []byte {
	h := make([]byte, 48)
	h[0], h[5], h[6], h[7] = 0x60, 8, 58, 64
	copy(h[8:], netip.MustParseAddr("fe80::2").AsSlice())
	copy(h[24:], netip.MustParseAddr(dst).AsSlice())
	h[40] = 128
	return fromPC(0x86dd, h)
}
