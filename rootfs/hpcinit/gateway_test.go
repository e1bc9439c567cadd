package hpcinit

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/internal/netns"
)

const testSession = "abcdefghijklmnopqrstuvwx27"

var gatewayAddr = netip.MustParseAddr("10.77.0.1")

// fakeGateway answers DHCP and HTTP on one host of the test as pxed would.
// edit, when set, changes or drops (by nil) a DHCP reply.
type fakeGateway struct {
	t    testing.TB
	edit func(request, reply *dhcpv4.DHCPv4) *dhcpv4.DHCPv4

	mu   sync.Mutex
	seen []dhcpv4.MessageType
}

func (g *fakeGateway) requests() []dhcpv4.MessageType {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]dhcpv4.MessageType(nil), g.seen...)
}

// serveDHCP answers on port 67 of h's interface link until the test ends.
func (g *fakeGateway) serveDHCP(h *netns.Host, link string) {
	g.t.Helper()
	var conn *net.UDPConn
	err := h.Do(func() (err error) {
		conn, err = listenOn(link, dhcpv4.ServerPort)
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if p, err := dhcpv4.FromBytes(b[:n]); err == nil {
				g.answer(conn, p)
			}
		}
	}()
}

func (g *fakeGateway) answer(conn *net.UDPConn, p *dhcpv4.DHCPv4) {
	g.mu.Lock()
	g.seen = append(g.seen, p.MessageType())
	g.mu.Unlock()
	if p.ClassIdentifier() != VendorClass || !p.IsBroadcast() {
		return // the firmware's business, not this client's
	}
	r := goodReply(p)
	if g.edit != nil {
		r = g.edit(p, r)
	}
	if r != nil {
		conn.WriteToUDP(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
	}
}

// goodReply is what pxed answers.
func goodReply(p *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	kind := dhcpv4.MessageTypeOffer
	if p.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
	}
	r, err := dhcpv4.NewReplyFromRequest(p,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithYourIP(net.IPv4(10, 77, 0, 2)),
		dhcpv4.WithServerIP(net.IPv4(10, 77, 0, 1)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 1))),
		dhcpv4.WithOption(dhcpv4.OptSubnetMask(net.CIDRMask(24, 32))),
		dhcpv4.WithOption(dhcpv4.OptRouter(net.IPv4(10, 77, 0, 1))),
		dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(12*time.Hour)),
		dhcpv4.WithOption(dhcpv4.OptGeneric(optionSession, []byte(testSession))),
		dhcpv4.WithOption(dhcpv4.OptBootFileName("http://10.77.0.1/b/"+testSession+"/")))
	if err != nil {
		panic(err)
	}
	return r
}

// serveFiles serves files of the test's boot session on h's port 80.
func serveFiles(t testing.TB, h *netns.Host, files map[string][]byte) {
	t.Helper()
	l, err := h.Listen("tcp", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := files[strings.TrimPrefix(r.URL.Path, "/b/"+testSession+"/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, io.ReadSeeker(bytes.NewReader(b)))
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}
