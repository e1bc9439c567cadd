package server

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/insomniacslk/dhcp/dhcpv4"

	api "portcullis/api/portcullis/v1"
	"portcullis/images/manifest"
	"portcullis/pxe/dhcp"
	"portcullis/pxe/ledger"
)

// discover sends a firmware's DISCOVER and returns the offer; xid tells one boot from the next.
func (b *bench) discover(c net.PacketConn, xid byte, modifiers ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	b.t.Helper()
	mac, _ := net.ParseMAC(pcMAC)
	packet, err := dhcpv4.NewDiscovery(mac, append([]dhcpv4.Modifier{dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, xid})}, modifiers...)...)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.exchange(c, packet)
}

// exchange sends a packet until an answer with its xid comes.
func (b *bench) exchange(c net.PacketConn, packet *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	b.t.Helper()
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcp.PortServer}
	buf := make([]byte, 2048)
	for range 10 {
		if _, err := c.WriteTo(packet.ToBytes(), to); err != nil {
			b.t.Fatal(err)
		}
		for {
			c.SetReadDeadline(time.Now().Add(2 * time.Second))
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				break
			}
			if reply, err := dhcpv4.FromBytes(buf[:n]); err == nil && reply.TransactionID == packet.TransactionID {
				return reply
			}
		}
	}
	b.t.Fatal("no answer")
	return nil
}

func asHTTP(d *dhcpv4.DHCPv4) {
	d.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient:Arch:00016:UNDI:003000"))
	d.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 16}))
}

func asAgent(d *dhcpv4.DHCPv4) { d.UpdateOption(dhcpv4.OptClassIdentifier(dhcp.AgentClass)) }

// sessionOf reads the session id out of an HTTP Boot offer.
func sessionOf(t *testing.T, offer *dhcpv4.DHCPv4) string {
	t.Helper()
	parts := strings.Split(offer.BootFileName, "/")
	if len(parts) != 6 || parts[5] != manifest.UKI {
		t.Fatalf("boot file %q", offer.BootFileName)
	}
	return parts[4]
}

func (b *bench) claim(sid string, key ed25519.PublicKey, uptime time.Duration) *api.ClaimResponse {
	b.t.Helper()
	digest := b.newest().ManifestDigest
	r, err := b.boot().Claim(context.Background(), connect.NewRequest(&api.ClaimRequest{
		Session: sid, PublicKey: key, ManifestDigest: digest, UptimeMs: uptime.Milliseconds(),
	}))
	if err != nil {
		b.t.Fatal(err)
	}
	return r.Msg
}

func newKey(t *testing.T) ed25519.PublicKey {
	t.Helper()
	key, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestHTTPBootFromDiscoverToClaim(t *testing.T) {
	b := newBench(t, "")
	b.start()
	c := b.pcSocket(dhcp.PortClient)
	offer := b.discover(c, 1, asHTTP)
	sid := sessionOf(t, offer)
	if got := b.gateway.all(); len(got) != 1 || got[0] != fmt.Sprintf("open %s %s %s", sid, pcMAC, pcAddress) {
		t.Fatalf("gatewayd was told %q before the offer", got)
	}
	if !offer.YourIPAddr.Equal(pcAddress.AsSlice()) {
		t.Errorf("leased %s", offer.YourIPAddr)
	}
	b.lease()
	b.fetchAll(sid)
	if _, body, err := b.get(b.url(sid, manifest.Envelope), ""); err != nil || len(body) == 0 {
		t.Fatalf("manifest: %d bytes, %v", len(body), err)
	}
	b.events.wait(t, "session.served", 1)
	inImage := b.discover(c, 2, asAgent)
	if got := string(inImage.Options.Get(dhcpv4.GenericOptionCode(224))); got != sid {
		t.Errorf("the image's client got session %q", got)
	}
	if got := string(inImage.Options.Get(dhcpv4.OptionBootfileName)); got != b.url(sid, "") {
		t.Errorf("the image's client got %q", got)
	}
	key := newKey(t)
	if r := b.claim(sid, key, 10*time.Millisecond); !r.Accepted || r.Session.State != api.SessionState_SESSION_STATE_CLAIMED {
		t.Fatalf("claim: %v", r)
	}
	if calls := b.gateway.all(); calls[len(calls)-1] != "PHASE_ATTEST "+sid {
		t.Errorf("gatewayd was told %q", calls)
	}
	if resp, _, err := b.get(b.url(sid, manifest.UKI), ""); err != nil || resp.StatusCode != 404 {
		t.Errorf("after the claim: %v, %v", resp, err)
	}
	if err := b.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestInvariant03_KillInTheMiddleLosesNoByteOfTheLedger(t *testing.T) {
	b := newBench(t, "")
	b.start()
	c := b.pcSocket(dhcp.PortClient)
	sid := sessionOf(t, b.discover(c, 1, asHTTP))
	b.lease()
	_, first, err := b.get(b.url(sid, manifest.UKI), "bytes=0-1999999")
	if err != nil || len(first) != 2_000_000 {
		t.Fatalf("%d bytes, %v", len(first), err)
	}
	// A response that is under way when the process dies.
	conn, err := b.pc.Dial(context.Background(), "tcp4", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /b/%s/%s HTTP/1.1\r\nHost: pi\r\nRange: bytes=2000000-\r\n\r\n", sid, manifest.UKI)
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	b.kill()
	b.start()
	if s := b.newest(); s.Id != sid || s.State != api.SessionState_SESSION_STATE_FETCHING {
		t.Fatalf("after the restart: %v", s)
	}
	size := len(b.image.Content[manifest.UKI])
	if _, rest, err := b.get(b.url(sid, manifest.UKI), "bytes=2000000-"); err != nil || len(rest) != size-2_000_000 {
		t.Fatalf("resume: %d bytes, %v", len(rest), err)
	}
	if _, body, err := b.get(b.url(sid, manifest.Root), ""); err != nil || len(body) == 0 {
		t.Fatal(err)
	}
	if r := b.claim(sid, newKey(t), 0); !r.Accepted {
		t.Errorf("claim after the restart: %s", r.Reason)
	}
	var interrupted int
	if _, err := ledger.Read(ledger.Path(b.state), func(l ledger.Line) error {
		if l.Result == ledger.Interrupted && l.Session == sid && l.Offset == 2_000_000 {
			interrupted++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if interrupted > 1 {
		t.Errorf("%d interrupted responses", interrupted)
	}
}

func TestInvariant04_BootRequestEndsTrustFirst(t *testing.T) {
	b := newBench(t, "")
	b.start()
	c := b.pcSocket(dhcp.PortClient)
	first := sessionOf(t, b.discover(c, 1, asHTTP))
	b.lease()
	b.fetchAll(first)
	if r := b.claim(first, newKey(t), 0); !r.Accepted {
		t.Fatal(r.Reason)
	}
	// While gatewayd has not answered, nothing may have been offered.
	b.gateway.seen = func(call string) {
		if !strings.HasPrefix(call, "open ") {
			return
		}
		if s := b.newest(); s.State != api.SessionState_SESSION_STATE_ENDED {
			t.Errorf("the old session is %v while gatewayd is asked", s.State)
		}
		if n := b.events.count("dhcp.reply"); n != 1 {
			t.Errorf("%d replies before gatewayd answered", n)
		}
	}
	second := sessionOf(t, b.discover(c, 9, asHTTP))
	if second == first {
		t.Error("the session of a trusted machine went on")
	}
	b.gateway.mu.Lock()
	b.gateway.seen, b.gateway.fail = nil, true
	b.gateway.mu.Unlock()
	b.fetchAll(second)
	// Without gatewayd there is no answer at all.
	mac, _ := net.ParseMAC(pcMAC)
	packet, _ := dhcpv4.NewDiscovery(mac, asHTTP)
	if _, err := c.WriteTo(packet.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcp.PortServer}); err != nil {
		t.Fatal(err)
	}
	e := b.events.wait(t, "dhcp.drop", 1)
	if e["reason"] != "gateway-unreachable" {
		t.Errorf("dropped for %v", e["reason"])
	}
	if n := b.events.count("dhcp.reply"); n != 2 {
		t.Errorf("%d replies", n)
	}
	if resp, _, err := b.get(b.url(second, manifest.UKI), ""); err != nil || resp.StatusCode != 404 {
		t.Errorf("the ended session is still served: %v %v", resp, err)
	}
}

func TestInvariant02_ChangedArtefactIsRefusedBeforeItIsSent(t *testing.T) {
	b := newBench(t, "")
	b.image.Flip(t, manifest.Root, 3<<20)
	b.start()
	e := b.events.wait(t, "image.refused", 1)
	if e["reason"] != manifest.ReasonArtefact {
		t.Errorf("refused for %v", e["reason"])
	}
	c := b.pcSocket(dhcp.PortClient)
	mac, _ := net.ParseMAC(pcMAC)
	packet, _ := dhcpv4.NewDiscovery(mac, asHTTP)
	if _, err := c.WriteTo(packet.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcp.PortServer}); err != nil {
		t.Fatal(err)
	}
	if e := b.events.wait(t, "dhcp.drop", 1); e["reason"] != string(dhcp.ReasonNoImage) {
		t.Errorf("dropped for %v", e["reason"])
	}
	b.image.Flip(t, manifest.Root, 3<<20) // and back: picked up without a restart
	sid := sessionOf(t, b.discover(c, 3, asHTTP))
	b.lease()
	b.fetchAll(sid)
}

func TestRecreatedInterfaceIsHeardAgain(t *testing.T) {
	b := newBench(t, "")
	b.start()
	sessionOf(t, b.discover(b.pcSocket(dhcp.PortClient), 1, asHTTP))
	if err := b.pi.DeleteLink(piIface); err != nil {
		t.Fatal(err)
	}
	b.events.wait(t, "dhcp.rebind", 1)
	begin := time.Now()
	b.cable()
	b.events.wait(t, "dhcp.bound", 2)
	sessionOf(t, b.discover(b.pcSocket(dhcp.PortClient), 2, asHTTP))
	took := time.Since(begin)
	t.Logf("heard again after %s", took)
	if took > 3*time.Second {
		t.Errorf("deaf for %s", took)
	}
}

func TestStateThatWasTamperedWithStopsTheStart(t *testing.T) {
	b := newBench(t, "")
	b.start()
	sessionOf(t, b.discover(b.pcSocket(dhcp.PortClient), 1, asHTTP))
	b.kill()
	path := filepath.Join(b.state, "pxed", "sessions")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[100] ^= 1
	text = append(text, text[16:]...) // so that the changed record is not the last one
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := b.pi.Run(context.Background(), "env", childEnv+"="+b.config, os.Args[0], "-test.run=^$")
	if err == nil || !strings.Contains(string(out)+err.Error(), "journal-broken") {
		t.Errorf("started: %v %s", err, out)
	}
}
