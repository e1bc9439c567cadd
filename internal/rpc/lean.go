package rpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"

	"portcullis/internal/readable"
)

// leanBuffer is the size of a connection's buffers in bytes: what a call has of headers is
// a few hundred, and what it carries seldom more.
const leanBuffer = 1 << 10

// maxHead bounds what is read of an answer before its body begins, in bytes.
const maxHead = 64 << 10

// Lean is Client for who talks to hundreds of sockets and holds streams open on each: To
// says in a call's context which one it goes to. Each call has a connection for itself
// (HTTP/1.1) and no goroutine; one that has been answered whole leaves its connection to
// the next call to that socket, one connection a socket. An open stream takes some 4 KiB
// so, where a connection of HTTP/2 takes ten times as much for header tables, buffers and
// stacks. gRPC, and streams in both directions, need Client.
func Lean() *http.Client {
	return &http.Client{Transport: &lean{idle: make(map[string]*leanConn)}}
}

// To has calls of Lean under this context go to the socket at path.
func To(ctx context.Context, path string) context.Context {
	return context.WithValue(ctx, leanPath{}, path)
}

// Held returns a context for one call of Lean whose answer is a stream, and what waits for
// the next message of it.
func Held(ctx context.Context) (context.Context, *Wire) {
	w := new(Wire)
	return context.WithValue(ctx, leanWire{}, w), w
}

// Wire is the connection of a stream that is held open. Who waits there stands on a few
// hundred bytes of stack; who waits where a message is read, on thousands.
type Wire struct{ conn *leanConn }

// Wait returns when there is something to read, or the stream has ended; at once
// where that is not known. The one who reads the stream calls it.
func (w *Wire) Wait() {
	if c := w.conn; c != nil && c.r.Buffered() == 0 {
		readable.Wait(c.Conn)
	}
}

type (
	lean struct {
		mu   sync.Mutex
		idle map[string]*leanConn // by path
	}
	leanPath struct{}
	leanWire struct{}
)

// leanConn is one connection.
type leanConn struct {
	net.Conn
	path    string
	limited *io.LimitedReader // of Conn
	r       *bufio.Reader     // of limited; nil while no call has it
	w       *bufio.Writer     // nil but while a call is written
}

// RoundTrip implements http.RoundTripper.
func (l *lean) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	if r.Body != nil {
		defer r.Body.Close()
	}
	path, _ := ctx.Value(leanPath{}).(string)
	if path == "" {
		return nil, errors.New("rpc: a call to no socket")
	}
	conn, err := l.conn(ctx, path)
	if err != nil {
		return nil, err
	}
	b := &leanBody{ctx: ctx, of: l, conn: conn}
	b.stop = context.AfterFunc(ctx, func() { conn.Close() })
	answer, err := conn.call(r)
	if err != nil {
		b.Close()
		return nil, b.why(err)
	}
	b.body, answer.Body = answer.Body, b
	if w, _ := ctx.Value(leanWire{}).(*Wire); w != nil {
		w.conn = conn
	}
	b.last = answer.Close || answer.StatusCode < http.StatusOK // what follows a provisional answer is not another call's
	return answer, nil
}

// conn is the connection that is left of a call before, or a new one.
func (l *lean) conn(ctx context.Context, path string) (*leanConn, error) {
	l.mu.Lock()
	c := l.idle[path]
	delete(l.idle, path)
	l.mu.Unlock()
	if c != nil && c.open() {
		c.begin()
		return c, nil
	}
	if c != nil {
		c.Close()
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c = &leanConn{Conn: conn, path: path, limited: &io.LimitedReader{R: conn}}
	c.begin()
	return c, nil
}

// begin gives c buffers. While it rests it has none.
func (c *leanConn) begin() {
	c.r, c.w = readers.Get().(*bufio.Reader), writers.Get().(*bufio.Writer)
	c.r.Reset(c.limited)
	c.w.Reset(c.Conn)
}

// rest takes them back: nothing is in them.
func (c *leanConn) rest() {
	c.r.Reset(nil)
	readers.Put(c.r)
	c.r = nil
}

var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, leanBuffer) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, leanBuffer) }}
)

// keep leaves c to the next call, unless there is one already.
func (l *lean) keep(c *leanConn) error {
	c.rest()
	l.mu.Lock()
	_, taken := l.idle[c.path]
	if !taken {
		l.idle[c.path] = c
	}
	l.mu.Unlock()
	if taken {
		return c.Close()
	}
	return nil
}

// open tells whether the other end still holds c and has said nothing that nobody asked
// for. A process that has ended shows at once: no call is ever sent a second time.
func (c *leanConn) open() bool {
	s, ok := c.Conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	var b [1]byte
	quiet := false
	err = raw.Control(func(fd uintptr) {
		_, err := unix.Read(int(fd), b[:]) // does not wait: Go's sockets never do
		quiet = err == unix.EAGAIN
	})
	return err == nil && quiet
}

func (c *leanConn) call(r *http.Request) (*http.Response, error) {
	if err := r.Write(c.w); err != nil {
		return nil, err
	}
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	c.w.Reset(nil)
	writers.Put(c.w)
	c.w = nil // a stream may be open for days, and nothing more is written
	c.limited.N = maxHead
	answer, err := http.ReadResponse(c.r, r)
	if err != nil && c.limited.N <= 0 {
		return nil, fmt.Errorf("rpc: an answer whose head has more than %d bytes", maxHead)
	}
	c.limited.N = math.MaxInt64 // what a body may have is the caller's matter
	return answer, err
}

// leanBody is a call's connection, and the body of its answer.
type leanBody struct {
	ctx  context.Context
	of   *lean
	conn *leanConn
	stop func() bool
	body io.Reader
	last bool // no other call may follow on this connection

	mu     sync.Mutex
	read   bool // all of the body
	closed bool
}

// why is the context's error where its end has closed the connection.
func (b *leanBody) why(err error) error {
	if ended := b.ctx.Err(); ended != nil && !errors.Is(err, io.EOF) {
		return ended
	}
	return err
}

// Read implements io.Reader. After Close the connection may be another call's.
func (b *leanBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	read, closed := b.read, b.closed
	b.mu.Unlock()
	switch {
	case closed:
		return 0, http.ErrBodyReadAfterClose
	case read:
		return 0, io.EOF
	}
	n, err := b.body.Read(p)
	if err == io.EOF {
		b.mu.Lock()
		b.read = true
		b.mu.Unlock()
	}
	if err != nil {
		err = b.why(err)
	}
	return n, err
}

// Close ends the call. What is left of a stream is not read: its connection ends with it.
func (b *leanBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	if !b.stop() || !b.read || b.last || b.conn.r.Buffered() > 0 {
		return b.conn.Close()
	}
	return b.of.keep(b.conn)
}
