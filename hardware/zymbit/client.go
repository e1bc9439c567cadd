package zymbit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"portcullis/hardware"
)

// Socket is where zymbitd listens.
const Socket = "/run/portcullis/zymbitd/zymbit.sock"

// replyTimeout bounds one operation where the context does not.
const replyTimeout = 30 * time.Second

// Client is the module through zymbitd.
type Client struct {
	path string
	conn net.Conn
	mu   sync.Mutex
}

var _ hardware.Root = (*Client)(nil)

// Dial connects to zymbitd.
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Client{path: path, conn: c}, nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonAbsent, Err: fmt.Errorf("zymbitd: %w", err)}
	}
	return c, nil
}

func (c *Client) call(ctx context.Context, q *Request) (*Reply, error) {
	if err := q.check(); err != nil {
		return nil, failed(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := time.Now().Add(replyTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = c.conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	busy := func(err error) error {
		// The stream is out of step now: an answer may still come.
		c.conn.Close()
		return &hardware.Error{Reason: hardware.ReasonBusy, Err: fmt.Errorf("zymbitd: %w", err)}
	}
	if err := writeFrame(c.conn, q); err != nil {
		return nil, busy(err)
	}
	a, err := ReadReply(c.conn)
	if err != nil {
		return nil, busy(err)
	}
	if a.Reason != "" {
		return nil, &hardware.Error{Reason: a.Reason, Err: errors.New(a.Text)}
	}
	return a, nil
}

// Identify asks the module.
func (c *Client) Identify(ctx context.Context) (hardware.Identity, error) {
	a, err := c.call(ctx, &Request{Op: OpIdentify})
	if err != nil {
		return hardware.Identity{}, err
	}
	if a.Identity == nil {
		return hardware.Identity{}, failed(errors.New("zymbitd answered without an identity"))
	}
	return *a.Identity, nil
}

// Random returns n bytes of the module's generator.
func (c *Client) Random(ctx context.Context, n int) ([]byte, error) {
	a, err := c.call(ctx, &Request{Op: OpRandom, N: n})
	if err != nil {
		return nil, err
	}
	if len(a.Data) != n {
		return nil, failed(fmt.Errorf("%d random bytes instead of %d", len(a.Data), n))
	}
	return a.Data, nil
}

// Seal locks secret to the module.
func (c *Client) Seal(ctx context.Context, label string, secret []byte) (json.RawMessage, error) {
	a, err := c.call(ctx, &Request{Op: OpSeal, Label: label, Data: secret})
	if err != nil {
		return nil, err
	}
	if _, err := ParseBlob(a.Blob); err != nil {
		return nil, failed(err)
	}
	return a.Blob, nil
}

// Unseal gives the secret back.
func (c *Client) Unseal(ctx context.Context, label string, blob json.RawMessage) ([]byte, error) {
	a, err := c.call(ctx, &Request{Op: OpUnseal, Label: label, Blob: blob})
	if err != nil {
		return nil, err
	}
	if len(a.Data) < 1 || len(a.Data) > 64 {
		clear(a.Data)
		return nil, failed(fmt.Errorf("a secret of %d bytes is not 1 to 64", len(a.Data)))
	}
	return a.Data, nil
}

// Sign signs with the module's device key.
func (c *Client) Sign(ctx context.Context, digest [32]byte) ([]byte, error) {
	a, err := c.call(ctx, &Request{Op: OpSign, Data: digest[:]})
	if err != nil {
		return nil, err
	}
	return a.Data, nil
}

// Forget cannot be done: a locked blob opens as long as the module lives.
func (c *Client) Forget(context.Context, json.RawMessage) error {
	return unsupported("the module cannot forget one blob; erase the keyslots instead")
}

// Tampers opens a second connection for the events.
func (c *Client) Tampers(ctx context.Context) (<-chan hardware.Tamper, error) {
	conn, err := dial(ctx, c.path)
	if err != nil {
		return nil, err
	}
	if err := writeFrame(conn, &Request{Op: OpTampers}); err != nil {
		conn.Close()
		return nil, failed(err)
	}
	out := make(chan hardware.Tamper)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(out)
		defer conn.Close()
		defer stop()
		for {
			a, err := ReadReply(conn)
			if err != nil || a.Tamper == nil {
				return
			}
			select {
			case out <- *a.Tamper:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// Indicate shows a state on the module's LED.
func (c *Client) Indicate(ctx context.Context, s hardware.Indication) error {
	_, err := c.call(ctx, &Request{Op: OpIndicate, State: s})
	return err
}

// Close hangs up.
func (c *Client) Close() error { return c.conn.Close() }
