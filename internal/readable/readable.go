// Package readable waits for connections without reading them: who waits in a Read of
// TLS or HTTP keeps thousands of bytes of stack meanwhile, which is more than all else
// that a process holds of a connection where it has hundreds of them.
package readable

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Wait returns when a read of c would not wait: bytes are there, or the connection has
// ended. It returns at once where c is no socket.
func Wait(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		raw.Read(now) // an error is for the read that follows to tell
	}
}

// now asks the kernel, whatever the runtime has been told of fd before.
func now(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}, 0)
	return n != 0 || err != nil
}
