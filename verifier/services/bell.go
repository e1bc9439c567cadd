package services

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/rpc"
)

// bootPort is where a PC asks for a boot first (RFC 2131).
const bootPort = 67

// BootBell hears that pxed, which rests, is wanted: the PC sends something to the port of
// DHCP, or attestd asks about a boot session. Nothing that the PC sends is read: its
// firmware asks again (EDK2 after 4 s), and then pxed is there.
type BootBell struct {
	Interface string // the PC's port
	Socket    string // pxed's own
	Allowed   []int  // user ids that may ask there, beside root
}

// answerTime bounds how long who rang is waited for to have its answer.
const answerTime = time.Second

// Why a bell rang.
const (
	whyPC    = "a packet for DHCP"
	whyClaim = "a question about a boot session"
)

// Wait returns when pxed is wanted, or cannot be heard to be.
func (b BootBell) Wait(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rung := make(chan string, 1)
	ring := func(why string) {
		select {
		case rung <- why:
		default:
		}
	}
	l, err := rpc.Listen(b.Socket, b.Allowed)
	if err != nil {
		return "", err
	}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewBootHandler(atRest{ctx, ring}))
	ended := make(chan error, 2)
	go func() { ended <- rpc.ServeOut(ctx, l, mux, answerTime) }()
	go func() { ended <- b.hear(ctx, func() { ring(whyPC) }) }()
	why := ""
	left := cap(ended)
	select {
	case <-ctx.Done():
	case why = <-rung:
	case err = <-ended:
		left--
	}
	// Both are ours no longer when pxed opens them.
	cancel()
	for range left {
		err = errors.Join(err, <-ended)
	}
	return why, err
}

// hear rings when a datagram comes in by the PC's port. An interface that goes away and
// comes back is another one: the socket is opened anew.
func (b BootBell) hear(ctx context.Context, ring func()) error {
	for ctx.Err() == nil {
		c, index, err := b.open()
		if errors.Is(err, unix.ENODEV) {
			pause(ctx)
			continue
		}
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		heard := b.wait(ctx, c, index)
		stop()
		c.Close()
		if heard {
			ring()
			<-ctx.Done()
		}
	}
	return nil
}

// wait is true when something came, and false when the interface is another one.
func (b BootBell) wait(ctx context.Context, c *net.UDPConn, index int) bool {
	for ctx.Err() == nil {
		c.SetReadDeadline(time.Now().Add(time.Second))
		// One byte, thrown away: the kernel drops the rest of the datagram.
		if _, _, err := c.ReadFrom(make([]byte, 1)); err == nil {
			return true
		} else if !isTimeout(err) {
			pause(ctx)
			return false
		}
		if now, err := b.index(c); err != nil || now != index {
			return false
		}
	}
	return false
}

// index is the number of the interface that has the name now.
func (b BootBell) index(c *net.UDPConn) (index int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(fd uintptr) { index, err = indexOf(fd, b.Interface) }); e != nil {
		return 0, e
	}
	return index, err
}

// indexOf asks by any socket: package net would ask by netlink, which verifierd's sandbox
// does not have. ENODEV where there is no such interface.
func indexOf(fd uintptr, name string) (int, error) {
	ask, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	err = unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, ask)
	return int(ask.Uint32()), err
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}

// open listens on the interface that has the name now, and says which that is.
func (b BootBell) open() (_ *net.UDPConn, index int, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) {
			if index, err = indexOf(fd, b.Interface); err == nil {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index))
			}
		}); e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", bootPort))
	if err != nil {
		return nil, 0, fmt.Errorf("services: the bell at port %d: %w", bootPort, err)
	}
	return c.(*net.UDPConn), index, nil
}

// atRest answers for pxed while that rests. It knows nothing of sessions: who asks about
// one asks again when pxed is there.
type atRest struct {
	ended context.Context
	ring  func(why string)
}

var errAtRest = errors.New("pxed is at rest: the boot is done")

// Claim wakes pxed.
func (a atRest) Claim(context.Context, *connect.Request[v1.ClaimRequest]) (*connect.Response[v1.ClaimResponse], error) {
	a.ring(whyClaim)
	return nil, connect.NewError(connect.CodeUnavailable, errAtRest)
}

// GetSession wakes pxed where it is about one session: attestd has to know it to go on.
// Who asks for the newest only looks.
func (a atRest) GetSession(_ context.Context, r *connect.Request[v1.GetSessionRequest]) (*connect.Response[v1.GetSessionResponse], error) {
	if r.Msg.GetId() == "" {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errAtRest)
	}
	a.ring(whyClaim)
	return nil, connect.NewError(connect.CodeUnavailable, errAtRest)
}

// WatchSessions has nothing to tell; the stream ends when pxed comes back.
func (a atRest) WatchSessions(ctx context.Context, _ *connect.Request[v1.WatchSessionsRequest], out *connect.ServerStream[v1.WatchSessionsResponse]) error {
	if err := out.Send(&v1.WatchSessionsResponse{}); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-a.ended.Done():
	}
	return nil
}
