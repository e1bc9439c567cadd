package tftp

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"portcullis/internal/event"
	"portcullis/pxe/refusal"
)

// Requests a second and at once. A boot makes three; the library pays a
// goroutine and a socket for each that comes through.
const (
	requestRate  = 1
	requestBurst = 10
)

// gate stands between the socket and the library: only well-formed read
// requests of the leased address for names that exist come through, and few.
type gate struct {
	net.PacketConn
	client  netip.Addr
	limit   *rate.Limiter
	refused *refusal.Log
	now     func() time.Time
}

// ReadFrom implements net.PacketConn.
func (g *gate) ReadFrom(p []byte) (int, net.Addr, error) {
	buf := make([]byte, maxRequest+1)
	for {
		n, addr, err := g.PacketConn.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				// The library asks again until its Shutdown has gone on from
				// closing us to telling it; it must not spin meanwhile.
				time.Sleep(time.Millisecond)
			}
			return 0, nil, err
		}
		request, reason := g.judge(buf[:n], addr)
		if reason != "" {
			g.refuse(reason, addr)
			continue
		}
		return copy(p, request), addr, nil
	}
}

func (g *gate) judge(b []byte, addr net.Addr) ([]byte, string) {
	from, ok := addr.(*net.UDPAddr)
	if !ok || from.AddrPort().Addr().Unmap() != g.client {
		return nil, ReasonSource
	}
	if !g.limit.AllowN(g.now(), 1) {
		return nil, ReasonRate
	}
	return parseRequest(b)
}

// refuse answers what an honest client could have sent. An ERROR is as small
// as the request, so nothing is amplified.
func (g *gate) refuse(reason string, addr net.Addr) {
	g.refused.Note("tftp.drop", reason, event.Fields{"client": addr.String()})
	switch reason {
	case ReasonWrite:
		g.PacketConn.WriteTo(errorPacket(codeAccess, "read only"), addr)
	case ReasonMode:
		g.PacketConn.WriteTo(errorPacket(codeUndefined, "octet mode only"), addr)
	case ReasonName:
		g.PacketConn.WriteTo(errorPacket(1, "no such file"), addr)
	}
}
