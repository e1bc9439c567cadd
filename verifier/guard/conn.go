package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"portcullis/internal/event"
	"portcullis/verifier/record"
)

// watchedListener names callers and sees what the HTTP server refuses by itself.
type watchedListener struct {
	net.Listener
	guard  *Guard
	ctx    context.Context
	places chan struct{}
	others chan struct{} // of them, those of callers who do not come first
}

// Accept closes a connection for which there is no room beside that of root.
func (l *watchedListener) Accept() (net.Conn, error) {
	for {
		select {
		case l.places <- struct{}{}:
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.places
			return nil, err
		}
		w := &watched{Conn: c, caller: caller(c), guard: l.guard, leave: sync.OnceFunc(func() { <-l.places })}
		if first(w.caller) {
			return w, nil
		}
		select {
		case l.others <- struct{}{}:
			w.leave = sync.OnceFunc(func() { <-l.others; <-l.places })
			return w, nil
		default:
		}
		w.Close()
		if err := l.guard.Refuse(record.Refusal{Action: ActionConnect, Reason: ReasonCrowd, Detail: fmt.Sprintf("%d connections of others than root are open", cap(l.others)), Caller: w.caller}); err != nil {
			l.guard.opt.Events.Emit("log.failed", event.Fields{"reason": ReasonLog, "detail": err.Error()})
		}
	}
}

// first tells whether a caller has places of his own: root, who has to get in to end something, and the
// verifier itself, which tests itself.
func first(caller string) bool {
	return caller == "uid 0" || caller == fmt.Sprintf("uid %d", os.Getuid())
}

// watched is one caller's connection.
type watched struct {
	net.Conn
	caller string
	guard  *Guard
	leave  func()
	asked  atomic.Bool // the guard has a request of it: what is written answers that one
}

func (w *watched) Close() error {
	w.leave()
	return w.Conn.Close()
}

// Write sees what net/http answers by itself, where it hands no request to the guard. It
// does not go by what is written: that may be a container's output.
func (w *watched) Write(b []byte) (int, error) {
	if !w.asked.Load() {
		line, _, _ := bytes.Cut(b, []byte("\r\n"))
		if err := w.guard.Refuse(record.Refusal{Action: ActionConnect, Reason: ReasonMalformed, Detail: "answered " + string(line), Caller: w.caller}); err != nil {
			return 0, err // nobody is answered what is not written down
		}
	}
	return w.Conn.Write(b)
}

// CloseWrite lets the server end a connection gently, as it does with unix sockets.
func (w *watched) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// open tells whether the caller still reads.
func open(c net.Conn) bool {
	w, ok := c.(*watched)
	if !ok {
		return false
	}
	u, ok := w.Conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	fds := []unix.PollFd{{}}
	err = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		// Hang-ups and errors are always told. A signal, of which the runtime sends itself many, says nothing.
		for _, err = unix.Poll(fds, 0); errors.Is(err, unix.EINTR); {
			_, err = unix.Poll(fds, 0)
		}
	})
	return err == nil && fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) == 0
}

// caller is who holds the other end, as the kernel says.
func caller(c net.Conn) string {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return "unknown"
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return "unknown"
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return "unknown"
	}
	return fmt.Sprintf("uid %d", cred.Uid)
}
