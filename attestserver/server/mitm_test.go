package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/agent/channel"
	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
	"portcullis/internal/netns"
)

// middle is a host of its own between the PC and the Pi: all that the two say to
// one another goes through it, one TLS record at a time.
type middle struct {
	*lab
	pc, host *netns.Host
	inside   string // where the PC finds what it takes for the Pi
	// toPi and toPC see each record and return what is sent in its place.
	toPi, toPC func(record []byte) [][]byte
	mu         sync.Mutex
	said       []byte // by the PC on its first connection
}

const (
	insideAddress = "10.78.0.1"
	piAddress     = "10.79.0.1"
	agentPort     = "7443"
)

func newMiddle(t *testing.T) *middle {
	t.Helper()
	hosts := netns.ForTest(t, "pc", "middle", "pi")
	m := &middle{lab: newLab(t), pc: hosts[0], host: hosts[1], inside: net.JoinHostPort(insideAddress, agentPort)}
	pi := hosts[2]
	cable := func(a *netns.Host, aName, aAddress string, b *netns.Host, bName, bAddress string) {
		t.Helper()
		if err := netns.Veth(a, aName, b, bName); err != nil {
			t.Fatal(err)
		}
		for _, end := range []struct {
			h             *netns.Host
			name, address string
		}{{a, aName, aAddress}, {b, bName, bAddress}} {
			if err := errors.Join(end.h.Address(end.name, netip.MustParsePrefix(end.address+"/24")), end.h.Up(end.name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cable(m.pc, "eth0", "10.78.0.2", m.host, "in", insideAddress)
	cable(m.host, "out", "10.79.0.2", pi, "eth0", piAddress)
	m.listen = func() (net.Listener, error) { return pi.Listen("tcp", net.JoinHostPort(piAddress, agentPort)) }
	ln, err := m.host.Listen("tcp", m.inside)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for first := true; ; first = false {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go m.carry(c, first)
		}
	}()
	m.pxed.open(sid)
	m.start()
	return m
}

// toTheGateway is a connection from the middle to the Pi.
func (m *middle) toTheGateway() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.host.Dial(ctx, "tcp", net.JoinHostPort(piAddress, agentPort))
}

func (m *middle) carry(pc net.Conn, first bool) {
	defer pc.Close()
	pi, err := m.toTheGateway()
	if err != nil {
		return
	}
	defer pi.Close()
	done := make(chan struct{}, 2)
	go func() { m.records(pi, pc, &m.toPC, nil); done <- struct{}{} }()
	var keep *[]byte
	if first {
		keep = &m.said
	}
	go func() { m.records(pc, pi, &m.toPi, keep); done <- struct{}{} }()
	<-done
}

func (m *middle) records(from io.Reader, to io.Writer, change *func([]byte) [][]byte, keep *[]byte) {
	for {
		record := make([]byte, 5, 20<<10)
		if _, err := io.ReadFull(from, record); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(record[3:]))
		record = append(record, make([]byte, n)...)
		if _, err := io.ReadFull(from, record[5:]); err != nil {
			return
		}
		all := [][]byte{record}
		m.mu.Lock()
		if keep != nil {
			*keep = append(*keep, record...)
		}
		if *change != nil {
			all = (*change)(record)
		}
		m.mu.Unlock()
		for _, r := range all {
			if _, err := to.Write(r); err != nil {
				return
			}
		}
	}
}

// dial is the agent's own dial, from the PC's host.
func (m *middle) dial(key *claim.Key) (c *channel.Conn, err error) {
	err = m.pc.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c, err = channel.Dial(ctx, m.inside, m.facts(sid), key)
		return err
	})
	return c, err
}

// honest brings the PC to trust through the middle, which only looks on.
func (m *middle) honest() *puppet {
	m.t.Helper()
	key := newKey(m.t)
	c, err := m.dial(key)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	p := &puppet{c, m.t, m.lab, key}
	p.send(p.evidence(p.challenge()))
	m.awaitState(0, "trusted")
	return p
}

func (m *middle) set(toPi, toPC func([]byte) [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.toPi, m.toPC = toPi, toPC
}

func TestAttack_MiddleReplaysTheWholeConnection(t *testing.T) {
	m := newMiddle(t)
	m.honest()
	m.mu.Lock()
	said := bytes.Clone(m.said)
	m.mu.Unlock()
	c, err := m.toTheGateway()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(said); err != nil {
		t.Fatal(err)
	}
	m.await(0, "agent.refused", map[string]any{"reason": channelTLS})
	if _, e, _ := m.events.find(0, "agent.disconnected", nil); e != nil {
		t.Error("the replay ended the PC's own connection")
	}
}

const channelTLS = "channel-tls"

// Each of these changes one thing on a live connection, in its own way. The end
// that gets it finds that the record is not what the other has said here and now.
func TestAttack_MiddleOnALiveConnection(t *testing.T) {
	type change func([]byte) [][]byte
	pass := func(r []byte) [][]byte { return [][]byte{r} }
	once := func(f change) change {
		done := false
		return func(r []byte) [][]byte {
			if done {
				return pass(r)
			}
			out := f(r)
			done = out == nil || len(out) != 1 || !bytes.Equal(out[0], r)
			return out
		}
	}
	var asked, answered []byte
	for name, c := range map[string]struct{ toPi, toPC change }{
		"replay of a record": {toPi: once(func(r []byte) [][]byte { return [][]byte{r, bytes.Clone(r)} })},
		"reordered records": {toPi: func() change {
			var held []byte
			return func(r []byte) [][]byte {
				switch {
				case held == nil && len(r) > 10000: // the first of two records of one answer
					held = r
					return nil
				case held != nil:
					return [][]byte{r, held}
				}
				return pass(r)
			}
		}()},
		"changed bit": {toPi: once(func(r []byte) [][]byte { r[len(r)-1] ^= 1; return [][]byte{r, nil} })},
		"reflected to the Pi": {
			toPC: func(r []byte) [][]byte { asked = bytes.Clone(r); return pass(r) },
			toPi: once(func(r []byte) [][]byte {
				if asked == nil {
					return pass(r)
				}
				return [][]byte{asked, r}
			}),
		},
		"reflected to the PC": {
			toPi: func(r []byte) [][]byte { answered = bytes.Clone(r); return pass(r) },
			toPC: once(func(r []byte) [][]byte {
				if answered == nil {
					return pass(r)
				}
				return [][]byte{answered, r}
			}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMiddle(t)
			p := m.honest()
			m.set(c.toPi, c.toPC)
			ended := make(chan error, 1)
			go func() {
				for {
					q, err := p.Receive(protocol.MaxFrame)
					if err != nil {
						ended <- err
						return
					}
					if q.GetChallenge() == nil {
						continue
					}
					e := p.evidence(q.GetChallenge())
					if name == "reordered records" { // an answer of two TLS records
						e.Results[0].Data = make([]byte, 24<<10)
					}
					p.Send(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: e}})
				}
			}()
			select {
			case err := <-ended:
				if name == "reflected to the PC" && !strings.Contains(err.Error(), "bad record MAC") {
					t.Errorf("the PC ended it with %v", err)
				}
			case <-time.After(patience):
				t.Fatal("the connection goes on")
			}
			_, e := m.await(0, "agent.disconnected", nil)
			if detail := e["detail"].(string); !strings.Contains(detail, "bad record MAC") {
				t.Errorf("the Pi ended it with %q", detail)
			}
			if s := m.verdict().State.String(); s == "TRUST_STATE_TRUSTED" {
				t.Errorf("still %s", s)
			}
		})
	}
}

// A relay ends the PC's TLS itself. The PC has the Pi's key from the signed
// initrd and says nothing to anybody else.
func TestAttack_MiddleRelaysWithItsOwnKey(t *testing.T) {
	m := newMiddle(t)
	key := newKey(t)
	own, err := protocol.ServerConfig(newKey(t).Private())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := m.host.Listen("tcp", net.JoinHostPort(insideAddress, "7444"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heard := make(chan []byte, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		s := tls.Server(c, own)
		b := make([]byte, 1)
		n, _ := s.Read(b)
		heard <- b[:n]
	}()
	m.inside = net.JoinHostPort(insideAddress, "7444")
	if _, err := m.dial(key); !errors.Is(err, protocol.ErrPin) {
		t.Errorf("the PC: %v, want %v", err, protocol.ErrPin)
	}
	if b := <-heard; len(b) > 0 {
		t.Errorf("the PC said something to the relay: %x", b)
	}
}

// Downgrade: the middle offers the Pi an older TLS in the PC's name, and answers
// the PC with an older one itself.
func TestAttack_MiddleDowngrades(t *testing.T) {
	m := newMiddle(t)
	old := func(r []byte) [][]byte {
		if r[0] == 22 && r[5] == 1 { // ClientHello: supported_versions (43) says 1.2
			return [][]byte{bytes.Replace(r, []byte{0, 43, 0, 3, 2, 3, 4}, []byte{0, 43, 0, 3, 2, 3, 3}, 1)}
		}
		return [][]byte{r}
	}
	m.set(old, nil)
	if _, err := m.dial(newKey(t)); err == nil {
		t.Fatal("a connection that was offered as TLS 1.2 is believed")
	}
	m.await(0, "agent.refused", map[string]any{"reason": channelTLS})
	m.set(nil, nil)

	cert, err := protocol.Certificate(m.image.GatewayKey) // even with the Pi's own key
	if err != nil {
		t.Fatal(err)
	}
	ln, err := m.host.Listen("tcp", net.JoinHostPort(insideAddress, "7444"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12}).Handshake()
	}()
	m.inside = net.JoinHostPort(insideAddress, "7444")
	if _, err := m.dial(newKey(t)); err == nil {
		t.Error("the PC takes TLS 1.2")
	}
}
