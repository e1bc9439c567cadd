package boot

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Link is the state of one network interface.
type Link struct {
	Index    int
	Name     string
	MAC      net.HardwareAddr
	Loopback bool
	Ethernet bool // Ethernet framing (ARPHRD_ETHER): wired cards, and others that imitate them
	Up       bool // administratively
	Carrier  bool // a peer is there (IFF_LOWER_UP)
	Gone     bool // the interface was removed
}

// Links returns the interfaces of this network namespace.
func Links() ([]Link, error) {
	rib, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list network links: %w", err)
	}
	return parseLinks(rib)
}

func parseLinks(b []byte) ([]Link, error) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return nil, fmt.Errorf("read link messages: %w", err)
	}
	var out []Link
	for i := range messages {
		m := &messages[i]
		if m.Header.Type != syscall.RTM_NEWLINK && m.Header.Type != syscall.RTM_DELLINK {
			continue
		}
		if len(m.Data) < syscall.SizeofIfInfomsg {
			return nil, errors.New("read link messages: short message")
		}
		l := linkOf(m.Data)
		l.Gone = m.Header.Type == syscall.RTM_DELLINK
		attrs, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return nil, fmt.Errorf("read link attributes: %w", err)
		}
		for _, a := range attrs {
			switch a.Attr.Type {
			case syscall.IFLA_IFNAME:
				l.Name = unix.ByteSliceToString(a.Value)
			case syscall.IFLA_ADDRESS:
				l.MAC = append(net.HardwareAddr(nil), a.Value...)
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// linkOf reads the fixed part of a link message (struct ifinfomsg, rtnetlink(7)).
func linkOf(b []byte) Link {
	kind := native.Uint16(b[2:])
	flags := native.Uint32(b[8:])
	return Link{
		Index:    int(int32(native.Uint32(b[4:]))),
		Loopback: flags&unix.IFF_LOOPBACK != 0,
		Ethernet: kind == unix.ARPHRD_ETHER,
		Up:       flags&unix.IFF_UP != 0,
		Carrier:  flags&unix.IFF_LOWER_UP != 0,
	}
}

// LinkWatch tells of changes of links.
type LinkWatch struct{ f *os.File }

// WatchLinks starts a watch. Changes after its return are not missed, so list
// the links after it, not before.
func WatchLinks() (*LinkWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch links: %w", err)
	}
	return &LinkWatch{os.NewFile(uintptr(fd), "netlink")}, nil
}

// Wait returns the next changes. os.ErrDeadlineExceeded says that none came
// until the deadline, unix.ENOBUFS that some were lost: list the links again.
func (w *LinkWatch) Wait(deadline time.Time) ([]Link, error) {
	if err := w.f.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	b := make([]byte, 32<<10)
	n, err := w.f.Read(b)
	if err != nil {
		return nil, err
	}
	return parseLinks(b[:n])
}

// Close ends the watch and a Wait that is under way.
func (w *LinkWatch) Close() error { return w.f.Close() }
