package main

import (
	"net"
	"net/netip"

	"portcullis/internal/room"
)

// Strangers' connections at once, in all and from one address; one more is closed. Each costs memory and
// a file, and what has no more of the two writes no log.
const (
	maxStrangers = 64
	maxOfOne     = 8
)

// crowd is a listener that lets so many in.
type crowd struct {
	net.Listener
	room *room.Room[netip.Prefix]
}

func newCrowd(l net.Listener) *crowd {
	return &crowd{l, room.New[netip.Prefix](maxStrangers, maxOfOne)}
}

// Accept closes those for whom there is no room.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		leave, ok := c.room.Enter(origin(conn.RemoteAddr()))
		if !ok {
			conn.Close()
			continue
		}
		return &stranger{conn, leave}, nil
	}
}

// origin is who counts as one: an address of IPv4, a network of 64 bits of IPv6, in which one machine has
// as many addresses as it likes. Who cannot be told apart is one, too.
func origin(a net.Addr) netip.Prefix {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, err := ip.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

type stranger struct {
	net.Conn
	leave func()
}

// Close makes room for the next.
func (s *stranger) Close() error {
	s.leave()
	return s.Conn.Close()
}
