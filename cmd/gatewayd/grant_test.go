package main

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/internal/netns"
)

func TestGrantOpensExactlyOneThing(t *testing.T) {
	r := newRig(t)
	r.start()
	for _, a := range []string{":80", ":81"} {
		r.listen(r.up, upIP+a)
	}
	r.run(time.Minute, addrPort(upIP+":80"))
	c, err := r.dial(upIP+":80", 2*time.Second)
	if err != nil {
		t.Fatalf("the granted connection does not open: %v", err)
	}
	defer c.Close()
	if !r.carries(c) {
		t.Error("the granted connection carries nothing")
	}
	out := r.capture(r.up, "eth0")
	if other, err := r.dial(upIP+":81", 300*time.Millisecond); err == nil {
		other.Close()
		t.Error("the next port is open too")
	}
	r.sender().send(udpTo(upIP, 1, 80, "x"))
	r.sender().send(echoTo(upIP))
	r.eventually("counted", func() bool { s := r.status(); return s.Dropped["forward-udp"] == 1 && s.Dropped["forward-icmp"] == 1 })
	for _, f := range out.frames() {
		if f[14+9] != 6 || f[14+20+2] != 0 || f[14+20+3] != 80 {
			t.Errorf("came out beside the grant: % x", f)
		}
	}
	if host, _, _ := net.SplitHostPort(c.LocalAddr().String()); host != pcIP {
		t.Errorf("the PC's end is %s", host)
	}
}

// The machine outside cannot begin a flow to the PC, not even from the granted address and port.
func TestNobodyOutsideReachesThePC(t *testing.T) {
	r := newRig(t)
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(time.Minute, addrPort(upIP+":80"))
	c, err := r.dial(upIP+":80", 2*time.Second)
	r.must(err)
	defer c.Close()
	in := r.capture(r.pc, "eth0")
	from, err := r.up.ListenPacket("udp4", upIP+":80")
	r.must(err)
	defer from.Close()
	for range 10 {
		if _, err := from.WriteTo([]byte("hello"), &net.UDPAddr{IP: net.ParseIP(pcIP), Port: 9}); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if c, err := r.up.Dial(short, "tcp4", pcIP+":9"); err == nil {
		c.Close()
		t.Error("TCP from outside reaches the PC")
	}
	r.eventually("counted", func() bool { return r.status().Dropped["inbound"] >= 11 })
	if n := len(in.frames()); n != 0 {
		t.Errorf("%d frames reached the PC", n)
	}
}

func TestGrantEndsByItselfAndCutsItsFlow(t *testing.T) {
	r := newRig(t)
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(time.Minute)
	g := r.grant("tcp", addrPort(upIP+":80"), 1500*time.Millisecond)
	s := r.stream(upIP + ":80")
	r.eventually("the kernel has ended it", func() bool { return !r.inSet("grants", upIP) })
	// The kernel counts in ticks, of up to 10 ms, and rounds down both when it begins and when it ends.
	if early := time.Until(time.UnixMilli(g.NotAfterMs)); early > 50*time.Millisecond {
		t.Errorf("it ended %s too early", early)
	}
	r.over(s, 3)
	r.wait("grant.ended", map[string]any{"grant": g.Id, "reason": "expired"})
	if l := r.status().Grants; len(l) != 0 {
		t.Errorf("still listed: %v", l)
	}
}

// A grant does not outlive its end because gatewayd was dead at that moment, nor
// does it live longer because of the restart.
func TestGrantEndsWhileTheDaemonIsDead(t *testing.T) {
	r := newRig(t)
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(time.Minute)
	r.grant("tcp", addrPort(upIP+":80"), 1500*time.Millisecond)
	long := r.grant("tcp", addrPort(upIP+":81"), time.Minute)
	s := r.stream(upIP + ":80")
	r.kill(syscall.SIGKILL)
	r.eventually("the kernel has ended it", func() bool { return !r.inSet("grants", ". 80 ") })
	if !r.inSet("grants", ". 81 ") {
		t.Error("the longer one has ended, too")
	}
	r.over(s, 3)
	r.start()
	l := r.status().Grants
	if len(l) != 1 || l[0].Id != long.Id {
		t.Fatalf("grants after the restart: %v", l)
	}
	if d := l[0].NotAfterMs - long.NotAfterMs; d > 50 || d < -1000 {
		t.Errorf("the end moved by %d ms over the restart", d)
	}
}

// A grant works in the run phase only, and knocking at it in another phase does not ban.
func TestGrantPassesInRunOnly(t *testing.T) {
	r := newRig(t)
	r.banAfter = 1
	r.start()
	r.listen(r.up, upIP+":80")
	r.openBoot(first)
	r.grant("tcp", addrPort(upIP+":80"), time.Minute)
	for _, p := range []v1.Phase{v1.Phase_PHASE_BOOT, v1.Phase_PHASE_ATTEST, v1.Phase_PHASE_IDLE, v1.Phase_PHASE_QUARANTINE} {
		r.must(r.phase(first, p, 0))
		r.routing()
		if c, err := r.dial(upIP+":80", 100*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("the grant passes in %s", p)
		}
	}
	if s := r.status(); s.Dropped["grant-closed"] < 4 || len(s.Bans) != 0 {
		t.Errorf("counters %v bans %v", s.Dropped, s.Bans)
	}
}

func TestRunThatIsNotRenewedFallsBack(t *testing.T) {
	r := newRig(t)
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(30*time.Second, addrPort(upIP+":80"))
	s := r.stream(upIP + ":80")
	r.must(r.phase(first, v1.Phase_PHASE_RUN, 59*time.Minute))
	r.eventually("renewed, it has more time", func() bool { return r.inSet("run", "expires 58m") })
	r.must(r.phase(first, v1.Phase_PHASE_RUN, 400*time.Millisecond))
	r.eventually("the kernel has ended it", func() bool { return !r.inSet("run", "pc0") })
	r.over(s, 3)
	r.wait("phase", map[string]any{"phase": "attest", "reason": "run-not-renewed"})
	if p := r.status().Phase; p != v1.Phase_PHASE_ATTEST {
		t.Errorf("phase %s", p)
	}
}

// The uplink carries less than the cable (PPPoE, a tunnel): both ends are told by
// the segment size, since the ICMP message never reaches the PC.
func TestSegmentSizeFitsTheUplink(t *testing.T) {
	r := newRig(t)
	for _, h := range []*netns.Host{r.gw, r.up} {
		name := map[*netns.Host]string{r.gw: "up0", r.up: "eth0"}[h]
		if _, err := h.Run(r.ctx(), "ip", "link", "set", name, "mtu", "1300"); err != nil {
			t.Fatal(err)
		}
	}
	// The machine outside believes in 1500 bytes.
	if _, err := r.up.Run(r.ctx(), "ip", "link", "set", "eth0", "mtu", "1500"); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(time.Minute, addrPort(upIP+":80"))
	out, in := r.capture(r.up, "eth0"), r.capture(r.pc, "eth0")
	c, err := r.dial(upIP+":80", 2*time.Second)
	r.must(err)
	defer c.Close()
	for name, frames := range map[string][][]byte{"the PC's SYN": out.frames(), "the answer": in.frames()} {
		mss := 0
		for _, f := range frames {
			if t := f[14+20:]; f[14+9] == 6 && t[13]&2 != 0 && t[20] == 2 {
				mss = int(t[22])<<8 | int(t[23])
			}
		}
		if mss != 1300-40 {
			t.Errorf("%s offers segments of %d bytes, want %d", name, mss, 1300-40)
		}
	}
	big := make([]byte, 100_000)
	c.SetDeadline(time.Now().Add(5 * time.Second))
	go c.Write(big)
	if _, err := io.ReadFull(c, big); err != nil {
		t.Errorf("a large transfer stalls: %v", err)
	}
}
