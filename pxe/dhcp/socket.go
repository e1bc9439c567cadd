package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"portcullis/internal/event"
)

const (
	queueLength = 64 // packets that wait for the one worker
	// retryEvery is how often a missing interface is looked for, beside the
	// kernel's own word of it.
	retryEvery = time.Second
)

// Run answers until ctx ends. ready is called each time after the sockets have
// been opened. They are bound to the interface by its index, so an interface
// that goes away and comes back under the same name (USB Ethernet does) would
// leave them deaf without an error: the kernel's link messages are watched and
// the sockets opened anew.
func (s *Service) Run(ctx context.Context, ready func()) error {
	links := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}})
	if err != nil {
		return fmt.Errorf("dhcp: watch links: %w", err)
	}
	for ctx.Err() == nil {
		index, up := linkIndex(s.cfg.Interface)
		if !up {
			wait(ctx, links)
			continue
		}
		if err := s.serve(ctx, index, links, ready); err != nil {
			s.cfg.Events.Emit("dhcp.unbound", event.Fields{"interface": s.cfg.Interface, "detail": err.Error()})
			wait(ctx, nil)
		}
	}
	return nil
}

// linkIndex returns the index of the interface called name, and whether it is up.
func linkIndex(name string) (int, bool) {
	i, err := net.InterfaceByName(name)
	if err != nil || i.Flags&net.FlagUp == 0 {
		return 0, false
	}
	return i.Index, true
}

func wait(ctx context.Context, links <-chan netlink.LinkUpdate) {
	t := time.NewTimer(retryEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-links:
	}
}

type packet struct {
	raw  []byte
	from netip.AddrPort
	port int
	conn *ipv4.PacketConn
}

// serve answers until the interface is another one, or ctx ends.
func (s *Service) serve(ctx context.Context, index int, links <-chan netlink.LinkUpdate, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns []*ipv4.PacketConn
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		cancel()
		for _, c := range conns {
			c.Close()
		}
	}()
	queue := make(chan packet, queueLength)
	for _, port := range []int{PortServer, PortBINL} {
		c, err := listen(s.cfg.Interface, port)
		if err != nil {
			return err
		}
		conns = append(conns, c)
		wg.Go(func() { s.receive(ctx, c, port, index, queue) })
	}
	wg.Go(func() { s.work(ctx, queue) })
	s.cfg.Events.Emit("dhcp.bound", event.Fields{"interface": s.cfg.Interface})
	ready()
	t := time.NewTicker(retryEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-links:
		case <-t.C:
		}
		if now, _ := linkIndex(s.cfg.Interface); now != index {
			s.cfg.Events.Emit("dhcp.rebind", event.Fields{"interface": s.cfg.Interface})
			return nil
		}
	}
}

// receive reads packets into the queue until the connection is closed. It
// never waits for the worker: what does not fit is counted and forgotten.
func (s *Service) receive(ctx context.Context, c *ipv4.PacketConn, port, index int, queue chan<- packet) {
	buf := make([]byte, MaxPacket+1)
	for {
		n, cm, addr, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		from, ok := addr.(*net.UDPAddr)
		if err != nil || !ok {
			wait(ctx, nil) // ENETDOWN and the like: the link watcher decides
			continue
		}
		if cm != nil && cm.IfIndex != 0 && cm.IfIndex != index {
			continue
		}
		raw := append([]byte(nil), buf[:n]...)
		select {
		case queue <- packet{raw, from.AddrPort(), port, c}:
		default:
			s.dropped(ReasonQueue, raw, "")
		}
	}
}

// work is the one worker: there is one PC, and its requests are answered in order.
func (s *Service) work(ctx context.Context, queue <-chan packet) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-queue:
			reply, to := s.Handle(ctx, p.raw, netip.AddrPortFrom(p.from.Addr().Unmap(), p.from.Port()), p.port)
			if reply == nil {
				continue
			}
			if _, err := p.conn.WriteTo(reply, nil, net.UDPAddrFromAddrPort(to)); err != nil && ctx.Err() == nil {
				s.dropped(ReasonSend, p.raw, err.Error())
			}
		}
	}
}

// listen opens a broadcast socket that hears and speaks on one interface only.
func listen(iface string, port int) (*ipv4.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), iface),
			)
		}); e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:"+strconv.Itoa(port))
	if err != nil {
		return nil, fmt.Errorf("dhcp: listen on %s port %d: %w", iface, port, err)
	}
	p := ipv4.NewPacketConn(c)
	// Without control messages the binding alone keeps other interfaces out.
	_ = p.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true)
	return p, nil
}
