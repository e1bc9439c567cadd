package main

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
)

// ofB is a frame on the cable of PC B, with its Ethernet address.
func ofB(src, dst string, proto byte, l4 []byte) []byte {
	return etherFrame(gwMAC, macB, 0x0800, ipv4(ipOpt{src: src, dst: dst, proto: proto}, l4))
}

func udpOf(src, dst string, sport, dport uint16) []byte {
	u := make([]byte, 8)
	binary.BigEndian.PutUint16(u, sport)
	binary.BigEndian.PutUint16(u[2:], dport)
	binary.BigEndian.PutUint16(u[4:], 8)
	binary.BigEndian.PutUint16(u[6:], checksum(u, pseudo(src, dst, 17, len(u))))
	return u
}

// shut sends from every port that should be closed, and sees nothing come out but B's granted
// flow, where B's port is not among them.
func (k *rack) shut(when string, ports ...string) {
	t := k.a.t
	t.Helper()
	out := k.a.capture(k.a.up, "eth0")
	for _, p := range ports {
		switch p {
		case portA:
			for _, a := range attacks {
				k.a.sender().send(a.frame())
			}
			k.a.sender().send(tcpTo(upIP, 4000, 80, 2))
		case portB:
			k.b.sender().send(ofB(ipB, upIP, 17, udpOf(ipB, upIP, 1, 81)))
			if c, err := k.b.dial(upIP+":81", 200*time.Millisecond); err == nil {
				c.Close()
				t.Errorf("%s: PC B gets out", when)
			}
		case portNobody, trunk:
			h, own := k.nobody, ipNobody
			if p == trunk {
				h, own = k.tagged, "10.77.4.2"
			}
			c, err := h.ListenPacket("udp4", own+":5000")
			k.a.must(err)
			for _, to := range []string{upIP, pcIP, ipB, "10.77.3.1", "10.77.4.1", "203.0.113.1"} {
				c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(to), Port: 69})
			}
			c.Close()
		}
	}
	time.Sleep(50 * time.Millisecond)
	for _, f := range out.frames() {
		if flowOfB := f[14+9] == 6 && binary.BigEndian.Uint16(f[14+20+2:]) == 81; !flowOfB || slices.Contains(ports, portB) {
			t.Errorf("%s: came out: % x", when, f)
		}
	}
}

// TestInvariant01_RackOpensNoPortButItsOwn: the static deny of a rack is taken over port by port. The
// trunk and a port without a gatewayd stay closed whatever the others do.
func TestInvariant01_RackOpensNoPortButItsOwn(t *testing.T) {
	k := newRack(t)
	if said := k.a.refused("--pc", "rack-a", "--config", k.a.config); !strings.Contains(said, "deny-missing") {
		t.Errorf("without the static deny it says %q", said)
	}
	if _, err := k.a.gw.Run(k.a.ctx(), "nft", "-D", "port="+portA, "-f", "../../systemd/portcullis-deny.nft"); err != nil {
		t.Fatal(err)
	}
	if said := k.a.refused("--pc", "rack-a", "--config", k.a.config); !strings.Contains(said, "deny-missing") {
		t.Errorf("with the deny of a single port it says %q", said)
	}
	k.deny()
	k.shut("before any gatewayd", portA, portB, portNobody, trunk)
	k.a.start()
	if text := k.listed("set", "inet", "portcullis-deny", "open"); !strings.Contains(text, `"lan.10"`) || strings.Contains(text, portB) {
		t.Errorf("open ports are\n%s", text)
	}
	k.shut("with A's gatewayd", portA, portB, portNobody, trunk)
	k.b.start()
	k.shut("with both", portA, portB, portNobody, trunk)
	// The static deny is nobody's table: any process may flush it, and it is put back with both ports open.
	if _, err := k.a.gw.Run(k.a.ctx(), "nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	k.a.wait("drift", map[string]any{"restored": true})
	k.b.wait("drift", map[string]any{"restored": true})
	k.shut("the static deny was flushed", portA, portB, portNobody, trunk)
	k.a.eventually("both ports are open again", func() bool {
		text := k.listed("set", "inet", "portcullis-deny", "open")
		return strings.Contains(text, portA) && strings.Contains(text, portB)
	})
	for _, bad := range []string{".", "..", "a/b", "rack.a", "A", strings.Repeat("a", 41), "a\nb", "-"} {
		if said := k.a.refused("--pc="+bad, "--config", k.a.config); !strings.Contains(said, "not a name of a PC") {
			t.Errorf("--pc=%q: %q", bad, said)
		}
	}
	// Two ports are given one NFLOG group: the second is refused, its port stays shut, and
	// the first is not told of what the second's port sees.
	k.b.kill(syscall.SIGKILL)
	text, err := os.ReadFile(k.b.config)
	k.b.must(err)
	k.b.must(os.WriteFile(k.b.config, []byte(strings.Replace(string(text), "nflog_group: 78", "nflog_group: 77", 1)), 0o644))
	if said := k.b.refused("--pc", "rack-b", "--config", k.b.config); !strings.Contains(said, "NFLOG group 77: ") || !strings.Contains(said, "not permitted") {
		t.Errorf("with A's group it says %q", said)
	}
	k.shut("B has A's group", portA, portB, portNobody, trunk)
	k.a.sender().send(udpTo("198.51.100.7", 1, 2, "last"))
	for e := k.a.wait("violation", nil); e["destination"] != "198.51.100.7"; e = k.a.wait("violation", nil) {
		if e["source"] == ipB || e["source"] == macB {
			t.Errorf("A was told of what B did: %v", e)
		}
	}
	// A second gatewayd of the name is refused by the kernel, which knows who owns the tables.
	if said := k.a.refused("--pc", "rack-a", "--config", k.a.config); !strings.Contains(said, "not permitted") {
		t.Errorf("a second gatewayd of the name says %q", said)
	}
	k.a.openBoot(first)
	if text := k.listed("tables"); strings.Count(text, "table ") != 5 {
		t.Errorf("tables are\n%s", text)
	}
}

// TestInvariant01_RackOpenSetIsKept: while two real gatewayds open and shut their ports, nft puts elements into the set of
// open ports and takes them out at random. What they tell is what nft did, and in the end the set has their
// two ports. One that is put there, or whose tables somebody has deleted, is shut again.
func TestInvariant01_RackOpenSetIsKept(t *testing.T) {
	k := newRack(t)
	k.deny()
	k.a.start()
	k.b.start()
	foreign := []string{portNobody, trunk, "x0", "*"}
	edited := make(chan struct{})
	go func() {
		defer close(edited)
		random := rand.New(rand.NewPCG(7, 8))
		for range 40 {
			verb, x := "add", append(foreign, portA)[random.IntN(len(foreign)+1)]
			if random.IntN(3) == 0 || x == portA {
				verb = "delete"
			}
			k.a.gw.Run(context.Background(), "nft", verb+" element inet portcullis-deny open { "+x+" }") // it may not be there
		}
	}()
	for going := true; going; {
		select {
		case <-edited:
			going = false
		default:
		}
		for _, r := range []*rig{k.a, k.b} {
			r.openBoot(first)
			for _, p := range []v1.Phase{v1.Phase_PHASE_ATTEST, v1.Phase_PHASE_RUN, v1.Phase_PHASE_QUARANTINE} {
				r.must(r.phase(first, p, time.Minute))
			}
			r.openBoot(second)
		}
	}
	open := func(want string) func() bool {
		return func() bool {
			_, text, _ := strings.Cut(k.listed("set", "inet", "portcullis-deny", "open"), "elements = {")
			found := regexp.MustCompile(`"[^"]*"|\*`).FindAllString(text, -1)
			slices.Sort(found)
			return strings.Join(found, " ") == want
		}
	}
	const both = `"` + portA + `" "` + portB + `"`
	k.a.eventually("their two ports are in the set", open(both))
	told := map[any]int{}
	for _, r := range []*rig{k.a, k.b} {
		r.status() // what it saw is told
		for e := range r.drain() {
			if e["event"] == "gateway.failed" {
				t.Errorf("%s: %v", r.name, e)
			}
			if e["event"] != "drift" {
				continue
			}
			told[e["reason"]]++
			ports, _ := e["ports"].([]any)
			ok := len(ports) > 0
			for _, p := range ports {
				name, _ := p.(string)
				ok = ok && (e["reason"] == "open-foreign" && slices.Contains(foreign, name) || e["reason"] == "open-missing" && name == portA && r == k.a)
			}
			if !ok {
				t.Errorf("%s tells %v", r.name, e)
			}
		}
	}
	if told["open-foreign"] == 0 { // what was taken out may be back by the next change of its own gatewayd
		t.Errorf("they told of %v", told)
	}
	// Its gatewayd is dead and somebody deletes its tables: the static deny has its port.
	k.b.kill(syscall.SIGKILL)
	if _, err := k.a.gw.Run(k.a.ctx(), "nft", "delete table inet portcullis.rack-b; delete table netdev portcullis-link.rack-b; add element inet portcullis-deny open { "+portNobody+", "+trunk+" }"); err != nil {
		t.Fatal(err)
	}
	k.a.eventually("A's port alone is in the set", open(`"`+portA+`"`))
	k.shut("B's tables are gone", portA, portB, portNobody, trunk)
}

// TestInvariant04_RackPortsDoNotTouchEachOther: two real gatewayds in one namespace. What one
// grants, quarantines, counts and loses is its own.
func TestInvariant04_RackPortsDoNotTouchEachOther(t *testing.T) {
	k := newRack(t)
	k.deny()
	k.a.start()
	k.b.start()
	for _, p := range []string{":80", ":81"} {
		k.a.listen(k.a.up, upIP+p)
	}
	k.a.run(time.Minute, addrPort(upIP+":80"))
	k.b.run(time.Minute, addrPort(upIP+":81"))
	a, b := k.a.stream(upIP+":80"), k.b.stream(upIP+":81")
	if c, err := k.a.dial(upIP+":81", 200*time.Millisecond); err == nil {
		c.Close()
		t.Error("PC A has the grant of B")
	}
	if c, err := k.b.dial(upIP+":80", 200*time.Millisecond); err == nil {
		c.Close()
		t.Error("PC B has the grant of A")
	}

	k.apart(t)
	k.spoofed(t, a)
	k.runs(a, "nothing has changed")
	k.runs(b, "nothing has changed")

	// Quarantine of A, and another boot and run of it.
	k.a.must(k.a.phase(first, v1.Phase_PHASE_QUARANTINE, 0))
	k.a.routing()
	k.a.over(a, 3)
	a.stop()
	k.runs(b, "A is in quarantine")
	if p := k.b.status().Phase; p != v1.Phase_PHASE_RUN {
		t.Errorf("B is in %s", p)
	}
	k.a.openBoot(second)
	k.runs(b, "A boots anew")
	k.a.must(k.a.phase(second, v1.Phase_PHASE_ATTEST, 0))
	k.a.grant("tcp", addrPort(upIP+":80"), time.Minute)
	k.a.must(k.a.phase(second, v1.Phase_PHASE_RUN, 1500*time.Millisecond))
	a = k.a.stream(upIP + ":80")

	// A's gatewayd is killed in its run: the run ends in the kernel, and the port stays shut.
	k.a.kill(syscall.SIGKILL)
	k.a.eventually("the run of the killed has ended", func() bool { return !k.a.inSet("run", portA) })
	k.a.over(a, 3)
	k.shut("A's gatewayd is dead", portA)
	k.runs(b, "A's gatewayd is dead")
	k.b.grant("tcp", addrPort(upIP+":80"), time.Minute)
	k.b.stream(upIP + ":80")
	if c, err := k.a.dial(upIP+":80", 200*time.Millisecond); err == nil {
		c.Close()
		t.Error("with A's gatewayd dead PC A uses what B was granted")
	}
	k.a.start()
	k.runs(b, "A's gatewayd is back")
	if p := k.a.status().Phase; p != v1.Phase_PHASE_ATTEST {
		t.Errorf("A came back as %s", p)
	}
	k.b.kill(syscall.SIGTERM)
	k.shut("B's gatewayd is stopped", portB, portNobody, trunk)
	for _, r := range []*rig{k.a, k.b} {
		for e := range r.drain() {
			if n := e["event"]; n == "drift" || n == "gateway.failed" {
				t.Errorf("%s: %v", r.name, e)
			}
		}
	}
}

// runs sees that a flow is alive now.
func (k *rack) runs(s *stream, when string) {
	k.a.t.Helper()
	before := s.last.Load()
	k.a.eventually(when+": the flow of the other goes on", func() bool { return s.last.Load() > before })
}

// apart: no PC reaches the other, nor the Pi's address on the other's port.
func (k *rack) apart(t *testing.T) {
	t.Helper()
	toB, toA := k.a.capture(k.b.pc, "eth0"), k.a.capture(k.a.pc, "eth0")
	b := k.b.status().Dropped["forward-udp"]
	a := k.a.status().Dropped["forward-udp"]
	for _, to := range []string{ipB, gwB, ipNobody} {
		k.a.sender().send(udpTo(to, 9, 7443, "x"))
		if c, err := k.a.dial(to+":7443", 100*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("PC A reaches %s", to)
		}
	}
	for _, to := range []string{pcIP, gwIP, ipNobody} {
		k.b.sender().send(ofB(ipB, to, 17, udpOf(ipB, to, 9, 7443)))
	}
	k.a.eventually("counted", func() bool {
		return k.a.status().Dropped["forward-udp"] == a+3 && k.b.status().Dropped["forward-udp"] == b+3
	})
	for name, c := range map[string]*capture{ipB: toB, pcIP: toA} {
		for _, f := range c.frames() {
			if src := netip.AddrFrom4([4]byte(f[26:30])).String(); src != upIP {
				t.Errorf("%s got % x", name, f)
			}
		}
	}
	k.a.wait("violation", map[string]any{"source": pcIP, "destination": ipB})
	k.b.wait("violation", map[string]any{"source": ipB, "destination": pcIP})
}

// spoofed: on its own cable PC B pretends to be A, with A's addresses, and within A's granted flow.
func (k *rack) spoofed(t *testing.T, flow *stream) {
	t.Helper()
	out, to := k.a.capture(k.a.up, "eth0"), k.b.sender()
	before, others := k.b.status().Dropped, k.a.status().Dropped
	local := flow.conn.LocalAddr().(*net.TCPAddr)
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment, uint16(local.Port))
	binary.BigEndian.PutUint16(segment[2:], 80)
	segment[12], segment[13] = 5<<4, 0x04 // a reset
	const n = 5
	for range n {
		to.send(ofB(pcIP, upIP, 6, segment))                                                           // A's address, in A's flow
		to.send(ofB(gwIP, upIP, 17, udpOf(gwIP, upIP, 1, 80)))                                         // the Pi's address on A's port
		to.send(etherFrame(gwMAC, pcMAC, 0x0800, ipv4(ipOpt{dst: upIP, proto: 6}, segment)))           // A's two addresses
		to.send(etherFrame("ff:ff:ff:ff:ff:ff", macB, 0x0806, arpFrom(macB, pcIP, 2)[14:42]))          // A's address by ARP
		to.send(etherFrame(gwMAC, macB, 0x0800, ipv4(ipOpt{src: upIP, dst: pcIP, proto: 6}, segment))) // the answer of A's flow
	}
	want := map[string]uint64{"ip-spoof": 3 * n, "mac-spoof": n, "arp-spoof": n}
	k.b.eventually("counted", func() bool {
		now := k.b.status().Dropped
		for name, n := range want {
			if now[name] != before[name]+n {
				return false
			}
		}
		return true
	})
	now := k.a.status().Dropped
	for name, n := range now {
		if n != others[name] {
			t.Errorf("A's counter %s went from %d to %d by what B did", name, others[name], n)
		}
	}
	for _, f := range out.frames() { // beside the two granted flows
		if f[14+9] != 6 || f[14+20+13]&0x04 != 0 {
			t.Errorf("came out: % x", f)
		}
	}
	k.b.wait("violation", map[string]any{"reason": "ip-spoof", "source": pcIP})
	k.runs(flow, "spoofed")
	for e := range k.a.drain() {
		if reason, _ := e["reason"].(string); strings.HasSuffix(reason, "-spoof") {
			t.Errorf("A was told of what B did: %v", e)
		}
	}
}
