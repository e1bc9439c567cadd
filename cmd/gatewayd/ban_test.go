package main

import (
	"bytes"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
)

// The BanAfter-th forbidden packet bans, not the one before; the packet after
// it is already met by the ban.
func TestBanComesWithExactlyTheConfiguredPacket(t *testing.T) {
	for _, after := range []int{1, 2, 5, 37} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			r := newRig(t)
			r.banAfter = after
			r.start()
			send := r.sender()
			for range after - 1 {
				send.send(udpTo(upIP, 1, 2, "x"))
			}
			r.eventually("all counted", func() bool { return r.status().Dropped["forward-udp"] == uint64(after-1) })
			if s := r.status(); len(s.Bans) != 0 {
				t.Fatalf("banned after %d of %d packets", after-1, after)
			}
			send.send(udpTo(upIP, 1, 2, "x"))
			send.send(udpTo(upIP, 1, 2, "x"))
			r.eventually("ban", func() bool { return len(r.status().Bans) == 1 })
			r.eventually("the next is met by the ban", func() bool { return r.status().Dropped["banned"] == 1 })
			s := r.status()
			if s.Dropped["forward-udp"] != uint64(after) || s.Dropped["ban"] != 1 || s.Bans[0].Mac != pcMAC {
				t.Errorf("dropped %v, bans %v", s.Dropped, s.Bans)
			}
			if left := time.Until(time.UnixMilli(s.Bans[0].NotAfterMs)); left < 9*time.Minute || left > 10*time.Minute {
				t.Errorf("ban has %s left, want about 10m", left)
			}
			r.wait("ban", map[string]any{"mac": pcMAC, "seconds": 600})
		})
	}
}

// A ban cuts what is established, lets nothing new through, and keeps the two
// ways by which the machine can come back: its boot request and the agent channel.
func TestBanCutsEstablishedFlowsAndKeepsTheAgentChannel(t *testing.T) {
	r := newRig(t)
	r.banAfter = 5
	r.start()
	r.listen(r.up, upIP+":80")
	r.listen(r.gw, gwIP+":7443")
	r.run(time.Minute, addrPort(upIP+":80"))
	granted, err := r.dial(upIP+":80", 2*time.Second)
	r.must(err)
	defer granted.Close()
	agent, err := r.dial(gwIP+":7443", 2*time.Second)
	r.must(err)
	defer agent.Close()
	if !r.carries(granted) || !r.carries(agent) {
		t.Fatal("flows do not work before the ban")
	}
	out, send := r.capture(r.up, "eth0"), r.sender()
	for range 5 {
		send.send(udpTo(upIP, 1, 53, "x"))
	}
	out.frames()
	if r.passes(granted) {
		t.Error("the granted flow goes on under the ban")
	}
	if c, err := r.dial(upIP+":80", 300*time.Millisecond); err == nil {
		c.Close()
		t.Error("a new granted flow opens under the ban")
	}
	if n := len(out.frames()); n != 0 {
		t.Errorf("%d frames came out under the ban", n)
	}
	if !r.carries(agent) {
		t.Error("the agent channel is cut by the ban")
	}
	again, err := r.dial(gwIP+":7443", 2*time.Second)
	if err != nil {
		t.Errorf("the agent cannot come back under the ban: %v", err)
	} else {
		again.Close()
	}
	dhcp, err := r.gw.ListenPacket("udp4", "0.0.0.0:67")
	r.must(err)
	defer dhcp.Close()
	send.send(etherFrame("ff:ff:ff:ff:ff:ff", pcMAC, 0x0800, ipv4(ipOpt{src: "0.0.0.0", dst: "255.255.255.255", proto: 17}, []byte{0, 68, 0, 67, 0, 12, 0, 0, 'b', 'o', 'o', 't'})))
	dhcp.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, _, err := dhcp.ReadFrom(make([]byte, 16)); err != nil {
		t.Errorf("the boot request of a banned PC is not heard: %v", err)
	}
}

// Zero packets pass after the packet that bans, also when both are in one burst of thousands.
func TestBanLetsNoPacketThroughAfterIt(t *testing.T) {
	r := newRig(t)
	r.banAfter = 1
	r.start()
	r.run(time.Minute, addrPort(upIP+":80"))
	r.grant("udp", addrPort(upIP+":5000"), time.Minute)
	out, send := r.capture(r.up, "eth0"), r.sender()
	allowed, late, forbidden := udpTo(upIP, 5001, 5000, "granted"), udpTo(upIP, 5001, 5000, "late"), udpTo(upIP, 5001, 5001, "forbidden")
	for range 500 {
		send.send(allowed)
	}
	r.eventually("granted datagrams arrive", func() bool { return len(out.frames()) > 0 })
	send.send(forbidden)
	for range 5000 {
		send.send(late)
	}
	// More, where the last of those before were still on their way.
	r.eventually("all are counted", func() bool { return r.status().Dropped["banned"] >= 5000 })
	for _, f := range out.frames() {
		if bytes.Contains(f, []byte("late")) {
			t.Fatalf("passed after the ban: % x", f)
		}
	}
}

func TestBanOutlivesTheDaemonAndEndsByItself(t *testing.T) {
	r := newRig(t)
	r.banAfter, r.banFor = 1, "2s"
	r.start()
	r.sender().send(udpTo(upIP, 1, 2, "x"))
	r.eventually("ban", func() bool { return len(r.status().Bans) == 1 })
	r.kill(syscall.SIGKILL)
	r.start()
	if len(r.status().Bans) != 1 {
		t.Error("the ban did not survive kill -9 and restart")
	}
	r.eventually("the ban ends", func() bool { return len(r.status().Bans) == 0 })
}

// What honest firmware sends by itself is dropped and counted and does not ban;
// the tails of a boot that has just ended do not either.
func TestHonestNoiseDoesNotBan(t *testing.T) {
	r := newRig(t)
	r.banAfter = 2
	r.start()
	r.listen(r.gw, gwIP+":80")
	r.openBoot(first)
	web, err := r.dial(gwIP+":80", 2*time.Second)
	r.must(err)
	defer web.Close()
	if !r.carries(web) {
		t.Fatal("boot HTTP does not work in the boot phase")
	}
	r.must(r.phase(first, v1.Phase_PHASE_ATTEST, 0))
	send := r.sender()
	for range 10 {
		if r.passes(web) {
			t.Fatal("boot HTTP goes on after the boot phase")
		}
		for _, a := range attacks {
			switch a.name {
			case "LLDP", "EAPOL", "STP", "unknown ethertype", "IP multicast", "broadcast":
				send.send(a.frame())
			}
		}
		send.send(tcpTo(gwIP, 2000, 80, 0x02))                     // a retry of the boot server
		send.send(udpTo(gwIP, 2000, 69, "\x00\x01x\x00octet\x00")) // a late TFTP request
		send.send(etherFrame("33:33:00:00:00:02", pcMAC, 0x86dd, ipv6To("ff02::2")[14:]))
		send.send(arpFrom(pcMAC, "0.0.0.0", 1)) // RFC 5227 probe
		send.send(fromPC(0x0800, ipv4(ipOpt{dst: gwIP, proto: 1}, append([]byte{3, 3, 0xfc, 0xfc, 0, 0, 0, 0}, make([]byte, 28)...))))
	}
	r.eventually("all counted", func() bool { return r.status().Dropped["closed-service"] >= 20 })
	s := r.status()
	if len(s.Bans) != 0 || s.Dropped["ban"] != 0 {
		t.Errorf("noise banned the PC: %v", s.Dropped)
	}
	if s.Dropped["stale-flow"] == 0 {
		t.Errorf("the cut HTTP flow was not counted as stale: %v", s.Dropped)
	}
}

// A DHCP answer is a broadcast, which the kernel also loops back to the port it
// left by. The PC gets the answer, and nobody is blamed for the copy.
func TestOwnBroadcastIsNoViolation(t *testing.T) {
	r := newRig(t)
	r.banAfter = 1
	r.start()
	in := r.capture(r.pc, "eth0")
	dhcp, err := r.gw.ListenPacket("udp4", gwIP+":67")
	r.must(err)
	defer dhcp.Close()
	for range 3 {
		_, err := dhcp.WriteTo([]byte("offer"), &net.UDPAddr{IP: net.ParseIP("10.77.0.255"), Port: 68})
		r.must(err)
	}
	r.eventually("the copies are counted", func() bool { return r.status().Dropped["looped"] == 3 })
	if n := len(in.frames()); n != 3 {
		t.Errorf("%d of 3 answers reached the PC", n)
	}
	if s := r.status(); s.ViolationsTotal != 0 || len(s.Violations) != 0 || len(s.Bans) != 0 {
		t.Errorf("violations %v, total %d of %v, bans %v", s.Violations, s.ViolationsTotal, s.Dropped, s.Bans)
	}
}

// The window slides: at no time are three packets within one second, so that the
// third, which is two windows after the first, does not ban; the fourth does.
func TestBanWindowSlides(t *testing.T) {
	r := newRig(t)
	r.banAfter, r.banWindow = 3, "1s"
	r.start()
	send, began := r.sender(), time.Now()
	var at [4]time.Duration
	for i, when := range []time.Duration{0, 600 * time.Millisecond, 1200 * time.Millisecond, 1300 * time.Millisecond} {
		time.Sleep(time.Until(began.Add(when)))
		at[i] = time.Since(began)
		send.send(udpTo(upIP, 1, 2, "x"))
		r.eventually("counted", func() bool { return r.status().Dropped["forward-udp"] == uint64(i+1) })
		want := i == 3 && at[3]-at[1] < time.Second // a machine that overslept is told apart from a wrong window
		if i == 2 && at[2]-at[0] < 1050*time.Millisecond || i == 3 && !want {
			t.Fatalf("the machine is too slow for this test: sent at %v", at[:i+1])
		}
		if got := len(r.status().Bans) == 1; got != want {
			t.Errorf("after packet %d, sent at %v: banned %v", i+1, at[:i+1], got)
		}
	}
}

// What the link table bans for is cut both ways as well.
func TestBanOfTheLinkTableCutsEstablishedFlows(t *testing.T) {
	r := newRig(t)
	r.banAfter = 1
	r.start()
	r.listen(r.up, upIP+":80")
	r.listen(r.gw, gwIP+":7443")
	r.run(time.Minute, addrPort(upIP+":80"))
	s := r.stream(upIP + ":80")
	r.sender().send(arpFrom(pcMAC, gwIP, 2))
	r.eventually("ban", func() bool { return len(r.status().Bans) == 1 })
	r.over(s, 3)
	if r.status().Dropped["banned"] == 0 {
		t.Error("nothing met the ban")
	}
	c, err := r.dial(gwIP+":7443", 2*time.Second)
	if err != nil {
		t.Fatalf("the agent channel is shut: %v", err)
	}
	defer c.Close()
	if !r.carries(c) {
		t.Error("the agent channel carries nothing")
	}
}
