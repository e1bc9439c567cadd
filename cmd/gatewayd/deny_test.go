package main

import (
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
)

// attacks is what a PC tries in order to reach somebody, and the counter that it hits.
var attacks = []struct {
	name    string
	counter string
	frame   func() []byte
}{
	{"TCP", "forward-tcp", func() []byte { return tcpTo(upIP, 1111, 80, 0x02) }},
	{"TCP without SYN", "forward-tcp", func() []byte { return tcpTo(upIP, 1112, 80, 0x10) }},
	{"TCP with every flag", "forward-tcp", func() []byte { return tcpTo(upIP, 1113, 80, 0x3f) }},
	{"TCP with no flag", "forward-tcp", func() []byte { return tcpTo(upIP, 1114, 80, 0) }},
	{"UDP", "forward-udp", func() []byte { return udpTo(upIP, 1111, 5000, "x") }},
	{"DNS", "forward-dns", func() []byte { return udpTo(upIP, 1111, 53, "query") }},
	{"DNS over TCP", "forward-dns", func() []byte { return tcpTo(upIP, 1111, 53, 0x02) }},
	{"ICMP", "forward-icmp", func() []byte { return echoTo(upIP) }},
	{"SCTP", "forward-other", func() []byte { return fromPC(0x0800, ipv4(ipOpt{dst: upIP, proto: 132}, make([]byte, 12))) }},
	{"GRE", "forward-other", func() []byte { return fromPC(0x0800, ipv4(ipOpt{dst: upIP, proto: 47}, make([]byte, 12))) }},
	{"IPv6 in IPv4", "forward-other", func() []byte { return fromPC(0x0800, ipv4(ipOpt{dst: upIP, proto: 41}, make([]byte, 40))) }},
	{"IPv6", "ip6", func() []byte { return ipv6To("2001:db8::1") }},
	{"first fragment", "fragment", func() []byte {
		return fromPC(0x0800, ipv4(ipOpt{dst: upIP, proto: 17, frag: 0x2000}, make([]byte, 16)))
	}},
	{"later fragment", "fragment", func() []byte {
		return fromPC(0x0800, ipv4(ipOpt{dst: upIP, proto: 17, frag: 2}, make([]byte, 16)))
	}},
	{"source route", "ip-options", func() []byte {
		return fromPC(0x0800, ipv4(ipOpt{dst: gwIP, proto: 1, options: []byte{131, 7, 4, 203, 0, 113, 10, 0}}, make([]byte, 8)))
	}},
	{"another's IP", "ip-spoof", func() []byte {
		return fromPC(0x0800, ipv4(ipOpt{src: "10.77.0.9", dst: upIP, proto: 1}, make([]byte, 8)))
	}},
	{"the Pi's IP", "ip-spoof", func() []byte {
		return fromPC(0x0800, ipv4(ipOpt{src: gwIP, dst: upIP, proto: 1}, make([]byte, 8)))
	}},
	{"another's MAC", "mac-spoof", func() []byte {
		return etherFrame(gwMAC, "52:54:00:99:99:99", 0x0800, ipv4(ipOpt{dst: upIP, proto: 1}, make([]byte, 8)))
	}},
	{"ARP for the Pi's IP", "arp-spoof", func() []byte { return arpFrom(pcMAC, gwIP, 2) }},
	{"ARP with another's MAC inside", "arp-spoof", func() []byte { return arpFrom("52:54:00:99:99:99", pcIP, 2) }},
	{"VLAN tag", "vlan", func() []byte {
		return fromPC(0x8100, append([]byte{0, 5, 8, 0}, ipv4(ipOpt{dst: upIP, proto: 1}, make([]byte, 8))...))
	}},
	{"double VLAN tag", "vlan", func() []byte {
		return fromPC(0x88a8, append([]byte{0, 5, 0x81, 0, 0, 6, 8, 0}, ipv4(ipOpt{dst: upIP, proto: 1}, make([]byte, 8))...))
	}},
	{"LLDP", "lldp", func() []byte { return etherFrame("01:80:c2:00:00:0e", pcMAC, 0x88cc, make([]byte, 46)) }},
	{"EAPOL", "eapol", func() []byte { return etherFrame("01:80:c2:00:00:03", pcMAC, 0x888e, make([]byte, 46)) }},
	{"STP", "multicast", func() []byte { return etherFrame("01:80:c2:00:00:00", pcMAC, 38, make([]byte, 46)) }},
	{"unknown ethertype", "ethertype", func() []byte { return fromPC(0x88b5, make([]byte, 46)) }},
	{"frame for another machine", "other-host", func() []byte {
		return etherFrame("52:54:00:77:77:77", pcMAC, 0x0800, ipv4(ipOpt{dst: upIP, proto: 1}, make([]byte, 8)))
	}},
	{"IP multicast", "multicast", func() []byte {
		return etherFrame("01:00:5e:00:00:fb", pcMAC, 0x0800, ipv4(ipOpt{dst: "224.0.0.251", proto: 17}, make([]byte, 8)))
	}},
	{"ping of the Pi", "input-icmp", func() []byte { return echoTo(gwIP) }},
	{"TCP to the Pi", "input-tcp", func() []byte { return tcpTo(gwIP, 1111, 22, 0x02) }},
	{"UDP to the Pi", "input-udp", func() []byte { return udpTo(gwIP, 1111, 161, "x") }},
	{"the Pi's other address", "forward-tcp", func() []byte { return tcpTo("203.0.113.1", 1111, 22, 0x02) }},
	{"broadcast", "broadcast", func() []byte { return udpTo("10.77.0.255", 1111, 9, "x") }},
}

// TestInvariant01_NothingPassesInAnyPhase sends every attack in every phase: the
// machine outside sees no frame, and each packet is found in its counter.
func TestInvariant01_NothingPassesInAnyPhase(t *testing.T) {
	r := newRig(t)
	r.start()
	out, send := r.capture(r.up, "eth0"), r.sender()
	phases := []struct {
		name  string
		enter func()
	}{
		{"idle", func() {}},
		{"boot", func() { r.openBoot(first) }},
		{"attest", func() { r.must(r.phase(first, v1.Phase_PHASE_ATTEST, 0)) }},
		{"run", func() { r.must(r.phase(first, v1.Phase_PHASE_RUN, time.Minute)) }},
		{"quarantine", func() { r.must(r.phase(first, v1.Phase_PHASE_QUARANTINE, 0)) }},
	}
	for _, ph := range phases {
		ph.enter()
		r.routing()
		for _, a := range attacks {
			const n = 3
			before := r.status().Dropped[a.counter]
			for range n {
				send.send(a.frame())
			}
			r.eventually(ph.name+": "+a.name+" in counter "+a.counter, func() bool { return r.status().Dropped[a.counter] >= before+n })
			if got := r.status().Dropped[a.counter] - before; got != n {
				t.Errorf("%s: %s: %d of %d packets in counter %s", ph.name, a.name, got, n, a.counter)
			}
		}
		if got := out.frames(); len(got) > 0 {
			t.Errorf("%s: %d frames came out, the first is % x", ph.name, len(got), got[0])
		}
	}
	if s := r.status(); s.Dropped["forward-backstop"]+s.Dropped["input-backstop"] != 0 {
		t.Errorf("the second lock had to hold: %v", s.Dropped)
	}
}

// TestInvariant01_DenyBeforeListenAndAfterKill: before the socket exists the deny
// is there, and kill -9 in the run phase opens nothing and lets the run die in the kernel.
func TestInvariant01_DenyBeforeListenAndAfterKill(t *testing.T) {
	r := newRig(t)
	out, send := r.capture(r.up, "eth0"), r.sender()
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(2*time.Second, addrPort(upIP+":80"))
	c, err := r.dial(upIP+":80", 2*time.Second)
	r.must(err)
	defer c.Close()
	out.frames()

	r.kill(syscall.SIGKILL)
	for _, a := range attacks {
		send.send(a.frame())
	}
	for range 900 {
		send.send(udpTo(upIP, 4000, 4000, "leak"))
	}
	for _, f := range out.frames() {
		if ip := f[14:]; f[12] == 8 && ip[9] != 6 {
			t.Fatalf("after kill -9 a frame came out: % x", f)
		}
	}
	// The granted flow ends with its time in the kernel though nobody lives to end it.
	r.eventually("granted flow dies in the kernel", func() bool { return !r.passes(c) })
	out.frames()

	r.start()
	s := r.status()
	if s.Phase != v1.Phase_PHASE_ATTEST || s.Session != first || len(s.Grants) != 1 {
		t.Fatalf("after the restart: phase %s session %q grants %v; want attest, the same session, its grant", s.Phase, s.Session, s.Grants)
	}
	if s.Dropped["forward-udp"] < 900 {
		t.Errorf("counters did not survive the restart: %v", s.Dropped)
	}
	if r.passes(c) {
		t.Error("a run came back without being renewed")
	}
	r.must(r.phase(first, v1.Phase_PHASE_RUN, time.Minute))
	r.eventually("the renewed run carries the flow again", func() bool { return r.passes(c) })
}

// passes tells whether one byte comes back over an echo connection within a quarter second: where none should.
func (r *rig) passes(c net.Conn) bool { return echoed(c, 250*time.Millisecond) }

// carries is the same where one should.
func (r *rig) carries(c net.Conn) bool { return echoed(c, 10*time.Second) }

func echoed(c net.Conn, within time.Duration) bool {
	c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte{1}); err != nil {
		return false
	}
	n, _ := c.Read(make([]byte, 1))
	return n == 1
}

// TestInvariant01_DenyIsThereBeforeTheSocket watches from the moment the program
// starts: when its socket can be connected, the tables are complete.
func TestInvariant01_DenyIsThereBeforeTheSocket(t *testing.T) {
	r := newRig(t)
	r.start()
	out, err := r.gw.Run(r.ctx(), "nft", "list", "ruleset")
	r.must(err)
	for _, want := range []string{"table inet portcullis", "table netdev portcullis-link", `iifname "pc0" goto from-pc`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("nft does not show %q", want)
		}
	}
	if _, err := r.gw.Run(r.ctx(), "nft", "flush", "ruleset"); err != nil {
		t.Logf("flush ruleset by another process: %v", err)
	}
	send, capture := r.sender(), r.capture(r.up, "eth0")
	send.send(udpTo(upIP, 1, 2, "x"))
	r.eventually("counted", func() bool { return r.status().Dropped["forward-udp"] == 1 })
	if n := len(capture.frames()); n != 0 {
		t.Errorf("%d frames came out", n)
	}
}

func TestViolationsAreToldWithTheirAddresses(t *testing.T) {
	r := newRig(t)
	r.start()
	send := r.sender()
	send.send(tcpTo(upIP, 1111, 8443, 0x02))
	e := r.wait("violation", map[string]any{"reason": "forward-tcp"})
	if !has(e, map[string]any{"direction": "forward", "protocol": "tcp", "source": pcIP, "destination": upIP, "port": 8443}) {
		t.Errorf("violation is %v", e)
	}
	send.send(etherFrame(gwMAC, "52:54:00:99:99:99", 0x88b5, make([]byte, 46)))
	e = r.wait("violation", map[string]any{"reason": "mac-spoof"})
	if !has(e, map[string]any{"direction": "link", "source": "52:54:00:99:99:99", "protocol": "ether-0x88b5"}) {
		t.Errorf("violation is %v", e)
	}
	s := r.status()
	if len(s.Violations) < 2 || s.Violations[0].Reason != "mac-spoof" || s.ViolationsTotal < 2 {
		t.Errorf("status shows %v, total %d", s.Violations, s.ViolationsTotal)
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
