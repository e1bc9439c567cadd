package hpcinit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

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

// listenForStrangers collects the frames of the machine mac that come in on h's
// interface link and that the gateway would count against it: all but ARP, DHCP,
// and IPv4 from its address to the gateway's.
func listenForStrangers(t testing.TB, h *netns.Host, link, mac string) (seen func() []string) {
	t.Helper()
	index, err := h.Index(link)
	if err != nil {
		t.Fatal(err)
	}
	all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // network byte order
	fd := -1
	err = h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "packets")
	t.Cleanup(func() { f.Close() })
	var mu sync.Mutex
	var strange []string
	count := 0
	go func() {
		b := make([]byte, 65536)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			if n < 34 || net.HardwareAddr(b[6:12]).String() != mac {
				continue
			}
			mu.Lock()
			count++
			if !expected(b[12:n]) {
				strange = append(strange, fmt.Sprintf("% x", b[:min(n, 64)]))
			}
			mu.Unlock()
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		if count == 0 {
			t.Error("no frame of the PC was seen at all")
		}
		return strange
	}
}

// expected judges a frame from its type on.
func expected(b []byte) bool {
	switch kind, ip := binary.BigEndian.Uint16(b), b[2:]; kind {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IP:
		from, to := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		dhcp := from.IsUnspecified() && to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) && ip[9] == unix.IPPROTO_UDP
		return dhcp || from == netip.MustParseAddr("10.77.0.2") && to == gatewayAddr && ip[9] == unix.IPPROTO_TCP
	default:
		return false
	}
}
