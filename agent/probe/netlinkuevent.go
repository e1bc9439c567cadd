package probe

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ueventBuffer is the socket's buffer in bytes: udev's coldplug sends thousands
// of messages within a second.
const ueventBuffer = 16 << 20

// ueventGroup is the kernel's own group; group 2 is udev's, whose messages any
// program with rights can send.
const ueventGroup = 1

// kernelUevents opens the kernel's socket (netlink(7), NETLINK_KOBJECT_UEVENT).
// next blocks; it returns ErrLost where the kernel had to drop messages.
func kernelUevents() (next func() ([]byte, error), err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	// The larger buffer needs CAP_NET_ADMIN; without it the default one must do.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, ueventBuffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: ueventGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	buf := make([]byte, 64<<10)
	return func() ([]byte, error) {
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.ENOBUFS):
				return nil, ErrLost
			case err != nil:
				return nil, fmt.Errorf("uevent socket: %w", err)
			}
			// Other programs can send to this socket; the kernel's number is 0.
			if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid == 0 {
				return append([]byte(nil), buf[:n]...), nil
			}
		}
	}, nil
}
