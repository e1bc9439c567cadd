package pi

import (
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"sync"
)

// Console is the serial console of a machine over all its boots. QEMU connects to
// a socket of ours before the guest runs, so that no byte is lost; it also keeps
// the log by itself, so that a machine whose owner has gone still has one.
type Console struct {
	listener  net.Listener
	connected chan struct{} // one value for each boot
	readers   sync.WaitGroup

	mu   sync.Mutex
	text []byte
	pos  int           // Expect has consumed the text before
	more chan struct{} // closed and renewed with every piece
	conn net.Conn      // of the running boot; nil in between
	off  bool          // the machine has ended for good
}

func newConsole(path string) (*Console, error) {
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("pi: console: %w", err)
	}
	c := &Console{listener: l, more: make(chan struct{}), connected: make(chan struct{}, 1)}
	c.readers.Add(1)
	go func() {
		defer c.readers.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.mu.Lock()
			c.conn = conn
			c.mu.Unlock()
			c.readers.Add(1)
			go c.read(conn)
			c.connected <- struct{}{}
		}
	}()
	return c, nil
}

func (c *Console) read(conn net.Conn) {
	defer c.readers.Done()
	defer conn.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := conn.Read(buf)
		c.add(buf[:n])
		if err != nil {
			return
		}
	}
}

func (c *Console) add(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, b...)
	c.wake()
}

func (c *Console) wake() {
	close(c.more)
	c.more = make(chan struct{})
}

// close waits for what QEMU, which has ended, still wrote; nothing more will come.
func (c *Console) close() {
	c.listener.Close()
	c.readers.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.off {
		c.off = true
		c.wake()
	}
}

// Text returns everything that the machine has written so far.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// Mark is the place after what Expect has consumed; Since returns the text from a place on.
func (c *Console) Mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pos
}

// Since returns what the machine has written from the byte mark on.
func (c *Console) Since(mark int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text[min(mark, len(c.text)):])
}

// ExpectError is a wait that ended without the text.
type ExpectError struct {
	Pattern string
	Tail    string // what came last instead
	Err     error  // the context's, or ErrOff
}

func (e *ExpectError) Error() string {
	return fmt.Sprintf("pi: the console does not show %q: %v; its end:\n%s", e.Pattern, e.Err, e.Tail)
}

func (e *ExpectError) Unwrap() error { return e.Err }

// expect waits for the first match after what was consumed before, and consumes it.
func (c *Console) expect(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	for {
		c.mu.Lock()
		rest := c.text[c.pos:]
		if at := re.FindSubmatchIndex(rest); at != nil {
			m := make([]string, len(at)/2)
			for i := range m {
				if at[2*i] >= 0 {
					m[i] = string(rest[at[2*i]:at[2*i+1]])
				}
			}
			c.pos += at[1]
			c.mu.Unlock()
			return m, nil
		}
		more, ended := c.more, c.off
		c.mu.Unlock()
		if ended {
			return nil, &ExpectError{re.String(), c.tail(), ErrOff}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, &ExpectError{re.String(), c.tail(), ctx.Err()}
		}
	}
}

func (c *Console) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text[max(0, len(c.text)-3000):])
}

// send types text as it is.
func (c *Console) send(text string) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return fmt.Errorf("pi: console: %w", ErrOff)
	}
	_, err := conn.Write([]byte(text))
	return err
}
