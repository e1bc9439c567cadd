// Package world is the internet of a lab: a web server, a DNS server and an echo
// at 203.0.113.10 (and at 2001:db8:113::10), which record what reaches them, and
// a capture that counts every frame that arrives on the only interface. The lab
// runs it as a process of its own inside the namespace net.
package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Ports of the world's servers.
const (
	WebPort  = 80
	DNSPort  = 53
	EchoPort = 7 // UDP (RFC 862)
)

// WebText is what the web server answers, to everything.
const WebText = "portcullis lab: you reached the world\n"

// maxRecords bounds what a report keeps; counts go on.
const maxRecords = 256

// Record is one thing that reached a server or the wire.
type Record struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"` // frame, web, dns, echo
	From string    `json:"from"`
	What string    `json:"what"`
}

// Report is what reached the world since it began.
type Report struct {
	Frames  uint64   `json:"frames"` // every frame that came in, ARP included
	Web     uint64   `json:"web"`    // TCP connections to the web server
	DNS     uint64   `json:"dns"`    // questions
	Echo    uint64   `json:"echo"`   // datagrams to the echo server
	Records []Record `json:"records"`
}

// World serves and counts.
type World struct {
	mu  sync.Mutex
	rep Report
}

func (w *World) add(kind, from, what string, counter func(*Report) *uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*counter(&w.rep)++
	if len(w.rep.Records) < maxRecords {
		w.rep.Records = append(w.rep.Records, Record{time.Now(), kind, from, what})
	}
}

// Options of Run.
type Options struct {
	Interface string       // to capture on
	Addresses []netip.Addr // to serve on
	Control   string       // unix socket for Get
}

// Run serves in the namespace of the process until ctx ends. ready is called once
// everything listens.
func Run(ctx context.Context, o Options, ready func()) error {
	w := &World{}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var closers []io.Closer
	defer func() {
		for _, c := range closers {
			c.Close()
		}
	}()
	errs := make(chan error, 16)
	serve := func(c io.Closer, f func() error) {
		closers = append(closers, c)
		go func() { errs <- f() }()
	}
	capture, err := newCapture(o.Interface)
	if err != nil {
		return err
	}
	serve(capture, func() error { return capture.run(w) })
	for _, a := range o.Addresses {
		web, err := net.Listen("tcp", netip.AddrPortFrom(a, WebPort).String())
		if err != nil {
			return fmt.Errorf("world: web: %w", err)
		}
		serve(web, func() error { return w.web(web) })
		for _, u := range []struct {
			port   uint16
			answer func(from string, b []byte) []byte
		}{{DNSPort, w.dns}, {EchoPort, w.echo}} {
			c, err := net.ListenPacket("udp", netip.AddrPortFrom(a, u.port).String())
			if err != nil {
				return fmt.Errorf("world: udp %d: %w", u.port, err)
			}
			serve(c, func() error { return datagrams(c, u.answer) })
		}
	}
	os.Remove(o.Control)
	control, err := net.Listen("unix", o.Control)
	if err != nil {
		return fmt.Errorf("world: %w", err)
	}
	serve(control, func() error { return http.Serve(control, http.HandlerFunc(w.report)) })
	ready()
	select {
	case <-ctx.Done():
		return nil
	case err := <-errs:
		return fmt.Errorf("world: a server ended: %w", err)
	}
}

func (w *World) web(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(30 * time.Second))
			w.add("web", c.RemoteAddr().String(), "connection", func(r *Report) *uint64 { return &r.Web })
			// One answer for each piece that arrives: a test can see whether a
			// connection that stands still works.
			b := make([]byte, 4096)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := io.WriteString(c, WebText); err != nil {
					return
				}
			}
		}()
	}
}

func datagrams(c net.PacketConn, answer func(string, []byte) []byte) error {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if a := answer(from.String(), b[:n]); a != nil {
			c.WriteTo(a, from)
		}
	}
}

func (w *World) echo(from string, b []byte) []byte {
	w.add("echo", from, fmt.Sprintf("%d bytes", len(b)), func(r *Report) *uint64 { return &r.Echo })
	return b
}

// dns answers every A question with the world's own address.
func (w *World) dns(from string, b []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(b) != nil || len(m.Questions) != 1 {
		w.add("dns", from, "malformed", func(r *Report) *uint64 { return &r.DNS })
		return nil
	}
	q := m.Questions[0]
	w.add("dns", from, q.Name.String(), func(r *Report) *uint64 { return &r.DNS })
	m.Response, m.Authoritative = true, true
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 30},
			Body:   &dnsmessage.AResource{A: [4]byte{203, 0, 113, 10}},
		}}
	}
	a, err := m.Pack()
	if err != nil {
		return nil
	}
	return a
}

func (w *World) report(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	b, err := json.Marshal(w.rep)
	w.mu.Unlock()
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Write(b)
}

// Get asks the world behind a control socket for its report.
func Get(ctx context.Context, control string) (Report, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", control)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://world/", nil)
	if err != nil {
		return Report{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Report{}, fmt.Errorf("world: %w", err)
	}
	defer resp.Body.Close()
	var r Report
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&r); err != nil {
		return Report{}, fmt.Errorf("world: report: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return Report{}, errors.New("world: " + resp.Status)
	}
	return r, nil
}
