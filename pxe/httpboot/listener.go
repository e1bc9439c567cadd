package httpboot

import (
	"net"
	"net/netip"
	"sync"
)

// listener hands on connections of the leased address only, and a few at a time.
type listener struct {
	net.Listener
	client netip.Addr
	free   chan struct{} // holds a token for each open connection
}

// Accept closes what must not come in; whoever it was learns nothing.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if err != nil || from.Addr().Unmap() != l.client {
			c.Close()
			continue
		}
		select {
		case l.free <- struct{}{}:
			return &conn{Conn: c, release: sync.OnceFunc(func() { <-l.free })}, nil
		default:
			c.Close()
		}
	}
}

type conn struct {
	net.Conn
	release func()
}

func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
