package hpcinit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"portcullis/rootfs/boot"
)

// Waits of the DHCP client: after the first send, then doubled up to the cap.
// The first is short: the gateway is one cable away, and a packet that is sent
// in the moment in which the carrier comes can get lost inside the kernel, which
// marks the link as running up to a second later (so waiting for that mark costs more).
const (
	dhcpFirstWait = 50 * time.Millisecond
	dhcpWaitCap   = 4 * time.Second
	// dhcpRequests is how often an offer is requested before it is given up.
	dhcpRequests = 3
)

// dhcpClient asks for a lease on one interface.
type dhcpClient struct {
	link  boot.Link
	conn  *net.UDPConn
	xid   dhcpv4.TransactionID
	start time.Time
	drops map[string]int
	last  error // the drop that was seen last
}

// acquire asks on link until a valid lease comes or ctx ends.
func acquire(ctx context.Context, link boot.Link) (Lease, error) {
	conn, err := listenOn(link.Name, dhcpv4.ClientPort)
	if err != nil {
		pause(ctx, dhcpFirstWait) // the caller asks again at once while the link is usable
		return Lease{}, boot.Failf(ReasonNoLease, "socket on %s: %w", link.Name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := &dhcpClient{link: link, conn: conn, xid: newTransaction(), start: time.Now(), drops: map[string]int{}}
	for wait := dhcpFirstWait; ; wait = min(2*wait, dhcpWaitCap) {
		lease, err := c.round(ctx, wait)
		if err == nil {
			return lease, nil
		}
		if ctx.Err() != nil {
			return Lease{}, boot.Failf(ReasonNoLease, "%s", c.summary())
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			// A send that fails at once (the link just went away) must not spin.
			c.last = err
			pause(ctx, wait)
		}
	}
}

func newTransaction() (x dhcpv4.TransactionID) {
	rand.Read(x[:]) // never fails (crypto/rand)
	return x
}

// round sends one DISCOVER and follows the first valid offer to its end. The
// transaction stays the same while nobody offers, so that a slow server's offer
// for the last DISCOVER is good for this one.
func (c *dhcpClient) round(ctx context.Context, wait time.Duration) (Lease, error) {
	offer, err := c.exchange(ctx, discover(c.link.MAC, c.xid, c.secs()), wait, dhcpv4.MessageTypeOffer, nil)
	if err != nil {
		return Lease{}, err
	}
	c.xid = newTransaction() // for the round after this one
	var lease Lease
	for range dhcpRequests {
		_, err = c.exchange(ctx, request(c.link.MAC, offer, c.secs()), wait, dhcpv4.MessageTypeAck, func(ack *dhcpv4.DHCPv4) (err error) {
			lease, err = leaseOf(ack, offer)
			return err
		})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return lease, err
}

// exchange sends p and waits for a reply of kind want that accept (if any)
// takes; other packets are counted and passed over. A NAK ends it at once.
func (c *dhcpClient) exchange(ctx context.Context, p *dhcpv4.DHCPv4, wait time.Duration, want dhcpv4.MessageType, accept func(*dhcpv4.DHCPv4) error) (*dhcpv4.DHCPv4, error) {
	if _, err := c.conn.WriteToUDP(p.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ServerPort}); err != nil {
		return nil, fmt.Errorf("send on %s: %w", c.link.Name, err)
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	b := make([]byte, 2048)
	for ctx.Err() == nil {
		n, source, err := c.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return nil, err
		}
		if source.Port() != dhcpv4.ServerPort {
			c.count(drop(dropServer, "packet from port %d", source.Port()))
			continue
		}
		reply, err := parseReply(b[:n], source.Addr().Unmap(), p.TransactionID, c.link.MAC, want)
		if err == nil && accept != nil {
			err = accept(reply)
		}
		if err == nil {
			return reply, nil
		}
		c.count(err)
		var d *dropError
		if errors.As(err, &d) && d.reason == dropNak {
			return nil, err
		}
	}
	return nil, ctx.Err()
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *dhcpClient) count(err error) {
	c.last = err
	var d *dropError
	if errors.As(err, &d) {
		c.drops[d.reason]++
	}
}

// secs is the field of the same name, saturated.
func (c *dhcpClient) secs() uint16 {
	return uint16(min(time.Since(c.start)/time.Second, 0xffff))
}

// summary says what was heard instead of a lease.
func (c *dhcpClient) summary() string {
	if c.last == nil {
		return "no answer on " + c.link.Name
	}
	var parts []string
	for r, n := range c.drops {
		parts = append(parts, fmt.Sprintf("%s %d", r, n))
	}
	sort.Strings(parts)
	return fmt.Sprintf("on %s passed over [%s], last: %v", c.link.Name, strings.Join(parts, ", "), c.last)
}

// listenOn opens a UDP port on one interface, for broadcasts too. It must be a
// socket of that interface alone: without an address, the kernel has no other
// way to tell where a broadcast goes out.
func listenOn(name string, port int) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) {
			for _, opt := range []int{unix.SO_REUSEADDR, unix.SO_BROADCAST} {
				if err == nil {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, 1)
				}
			}
			if err == nil {
				err = unix.BindToDevice(int(fd), name)
			}
		})
		return errors.Join(cerr, err)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}
