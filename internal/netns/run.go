package netns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
)

// Start starts c inside the host. The caller waits for it and ends it.
func (h *Host) Start(c *exec.Cmd) error {
	if err := h.Do(c.Start); err != nil {
		return fmt.Errorf("netns: start %s in %s: %w", c.Path, h.name, err)
	}
	return nil
}

// Run runs a command inside the host and returns what it wrote to its standard
// output; a failure carries what it wrote to its standard error.
func (h *Host) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	if err := h.Start(c); err != nil {
		return nil, err
	}
	if err := c.Wait(); err != nil {
		return out.Bytes(), fmt.Errorf("netns: %s %s in %s: %w: %s", name, strings.Join(args, " "), h.name, err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.Bytes(), nil
}

// Listen opens a TCP or unix listener inside the host.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket inside the host.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Dial connects from inside the host; address must be a literal, so that no
// other thread is asked to resolve it.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		var d net.Dialer
		d.FallbackDelay = -1
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
