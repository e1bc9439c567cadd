package channel

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// toolTimeout bounds every wait of a tool: what a firewall drops never answers.
const toolTimeout = 3 * time.Second

// Tool runs one of hpc-lab's network tools inside the PC, the played PC or the Pi.
func Tool(ctx context.Context, in io.Reader, out io.Writer, args []string) error {
	if args[0] == "hold" && len(args) == 3 {
		return hold(ctx, out, args[1], args[2])
	}
	if args[0] == "bpf" && len(args) == 2 {
		return holdBPF(ctx, out, args[1])
	}
	if args[0] == "work" && len(args) == 3 {
		return work(ctx, out, args[1], args[2])
	}
	if found, err := intrude(ctx, out, args); found {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	switch {
	case args[0] == "send" && (len(args) == 3 || len(args) == 4):
		text := "hello"
		if len(args) == 4 {
			text = args[3]
		}
		return send(ctx, out, args[1], args[2], text)
	case args[0] == "dns" && len(args) == 3:
		return ask(ctx, out, args[1], args[2])
	case args[0] == "frame" && len(args) == 3:
		return frame(args[1], args[2])
	case args[0] == "pipe" && len(args) == 2:
		return pipe(ctx, in, out, args[1])
	}
	return errors.New("usage: send tcp|udp ADDRESS:PORT [TEXT] | hold ADDRESS:PORT DURATION | dns SERVER NAME | frame INTERFACE HEX | pipe SOCKET | bpf DURATION | work DURATION DIR")
}

// send writes text and prints what comes back before the deadline.
func send(ctx context.Context, out io.Writer, network, address, text string) error {
	if network != "tcp" && network != "udp" {
		return fmt.Errorf("network %q: use tcp or udp", network)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	_, err = out.Write(b[:n])
	return err
}

// hold opens a TCP connection that works, keeps it for a time, and uses it again.
func hold(ctx context.Context, out io.Writer, address, text string) error {
	wait, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	d := net.Dialer{Timeout: toolTimeout}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, pause := range []time.Duration{0, wait} {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		c.SetDeadline(time.Now().Add(toolTimeout))
		if _, err := io.WriteString(c, "again"); err != nil {
			return fmt.Errorf("no answer after %s: %w", pause, err)
		}
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("no answer after %s: %w", pause, err)
		}
		out.Write(b[:n])
	}
	return nil
}

// ask sends one A question (RFC 1035 §4.1) and prints the addresses.
func ask(ctx context.Context, out io.Writer, server, name string) error {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return err
	}
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 77, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := q.Pack()
	if err != nil {
		return err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", net.JoinHostPort(server, "53"))
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if _, err := c.Write(b); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	m, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	var a dnsmessage.Message
	if err := a.Unpack(buf[:m]); err != nil {
		return err
	}
	for _, r := range a.Answers {
		if v4, ok := r.Body.(*dnsmessage.AResource); ok {
			fmt.Fprintln(out, net.IP(v4.A[:]))
		}
	}
	return nil
}

// frame sends one raw Ethernet frame, header included.
func frame(link, text string) error {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) < 14 {
		return errors.New("frame: hex of at least an Ethernet header is needed")
	}
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("frame: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6}); err != nil {
		return fmt.Errorf("frame: sending on %s: %w", link, err)
	}
	return nil
}
