package main

import (
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/internal/netns"
)

// While gatewayd lives, the kernel refuses every other process, root included.
func TestOtherProcessesCannotEditTheTables(t *testing.T) {
	r := newRig(t)
	r.start()
	for _, edit := range []string{
		"insert rule inet portcullis from-pc accept",
		"flush chain inet portcullis from-pc",
		"delete table inet portcullis",
		"delete table netdev portcullis-link",
		"add element inet portcullis grants { 203.0.113.10 . tcp . 80 timeout 1h }",
		"flush set inet portcullis ban",
	} {
		if _, err := r.gw.Run(r.ctx(), "nft", edit); err == nil {
			t.Errorf("%q was accepted", edit)
		}
	}
}

// Between a kill and the restart the tables are nobody's and root can edit them;
// the restart puts everything back in its first transaction.
func TestEditsMadeWhileTheDaemonWasDeadAreUndone(t *testing.T) {
	for _, edit := range []string{
		"insert rule inet portcullis from-pc accept; insert rule inet portcullis forward-from-pc accept; insert rule netdev portcullis-link link-ip accept",
		"flush table inet portcullis; flush table netdev portcullis-link",
		"delete table inet portcullis; delete table netdev portcullis-link",
		"add element inet portcullis grants { 203.0.113.10 . tcp . 80 timeout 1h }; add element inet portcullis run { \"pc0\" timeout 1h }",
		"add chain inet portcullis mine { type filter hook forward priority -300; }; add rule inet portcullis mine accept",
	} {
		t.Run(edit[:30], func(t *testing.T) {
			r := newRig(t)
			r.start()
			r.run(time.Minute)
			r.kill(syscall.SIGKILL)
			if _, err := r.gw.Run(r.ctx(), "nft", edit); err != nil {
				t.Fatal(err)
			}
			r.start()
			r.must(r.phase(first, v1.Phase_PHASE_RUN, time.Minute))
			r.routing()
			out, send := r.capture(r.up, "eth0"), r.sender()
			for _, a := range attacks {
				send.send(a.frame())
			}
			send.send(tcpTo(upIP, 1234, 80, 2))
			r.eventually("counted", func() bool { return r.status().Dropped["broadcast"] >= 1 })
			if n := len(out.frames()); n != 0 {
				t.Errorf("%d frames came out", n)
			}
			text, err := r.gw.Run(r.ctx(), "nft", "list", "ruleset")
			r.must(err)
			if strings.Contains(string(text), "chain mine") {
				t.Error("the foreign chain is still there")
			}
		})
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	r := newRig(t)
	r.start()
	c := exec.Command(program, "--config", filepath.Join(r.dir, "portcullis.yaml"))
	r.must(r.gw.Start(c))
	if err := c.Wait(); err == nil {
		t.Error("a second gatewayd ran")
	}
	r.openBoot(first) // the first one is well
}

// The port disappears and comes back (a USB adapter, a driver reset): there is no
// moment in which it is open, and its link table is back.
func TestPortThatIsMadeAnewIsClosed(t *testing.T) {
	r := newRig(t)
	r.start()
	out := r.capture(r.up, "eth0")
	for range 3 {
		r.must(r.gw.DeleteLink("pc0"))
		r.wait("link", map[string]any{"present": false})
		r.cable()
		send := r.sender()
		for range 200 {
			send.send(udpTo(upIP, 1, 2, "early"))
			send.send(tcpTo(upIP, 1, 2, 2))
		}
		r.wait("link", map[string]any{"present": true})
		before := r.status().Dropped
		for _, a := range attacks {
			send.send(a.frame())
		}
		for _, name := range []string{"mac-spoof", "arp-spoof", "vlan", "lldp"} {
			r.eventually(name+" is counted on the new port", func() bool { return r.status().Dropped[name] > before[name] })
		}
		if v, err := r.gw.ReadSysctl("net.ipv6.conf.pc0.disable_ipv6"); err != nil || v != "1" {
			t.Errorf("the new port has disable_ipv6=%s, %v", v, err)
		}
	}
	if n := len(out.frames()); n != 0 {
		t.Errorf("%d frames came out", n)
	}
}

// cable joins PC and Pi anew with the same addresses.
func (r *rig) cable() {
	r.t.Helper()
	r.must(netns.Veth(r.pc, "eth0", r.gw, "pc0"))
	r.must(r.pc.SetMAC("eth0", pcMAC))
	r.must(r.gw.SetMAC("pc0", gwMAC))
	r.must(r.pc.Address("eth0", netip.MustParsePrefix(pcIP+"/24")))
	r.must(r.gw.Address("pc0", netip.MustParsePrefix(gwIP+"/24")))
	r.must(r.gw.Sysctl("net.ipv4.conf.pc0.forwarding", "1"))
}

// Started without its port, gatewayd denies already when the port appears.
func TestPortThatAppearsLater(t *testing.T) {
	r := newRig(t)
	r.must(r.gw.DeleteLink("pc0"))
	r.spawn()
	out := r.capture(r.up, "eth0")
	r.cable()
	send := r.sender()
	for range 500 {
		send.send(udpTo(upIP, 1, 2, "early"))
	}
	r.wait("link", map[string]any{"present": true})
	send.send(arpFrom(pcMAC, gwIP, 2))
	r.eventually("link table on the new port", func() bool { return r.status().Dropped["arp-spoof"] == 1 })
	if n := len(out.frames()); n != 0 {
		t.Errorf("%d frames came out", n)
	}
}

func TestLostCarrierEndsTheRun(t *testing.T) {
	r := newRig(t)
	r.start()
	r.run(time.Minute)
	r.must(r.pc.Down("eth0"))
	r.wait("phase", map[string]any{"phase": "attest", "reason": "link-lost"})
}

func TestPortInABridgeIsTakenOut(t *testing.T) {
	r := newRig(t)
	r.start()
	out, send := r.capture(r.up, "eth0"), r.sender()
	for _, args := range [][]string{{"link", "add", "br0", "type", "bridge"}, {"link", "set", "up0", "master", "br0"}, {"link", "set", "br0", "up"}, {"link", "set", "pc0", "master", "br0"}} {
		if _, err := r.gw.Run(r.ctx(), "ip", args...); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			send.send(etherFrame("52:54:00:77:77:77", pcMAC, 0x0800, ipv4(ipOpt{dst: upIP, proto: 17}, make([]byte, 8))))
		}
	}
	r.wait("drift", map[string]any{"reason": "port-enslaved"})
	r.eventually("taken out", func() bool {
		text, err := r.gw.Run(r.ctx(), "ip", "link", "show", "pc0")
		return err == nil && !strings.Contains(string(text), "master")
	})
	for _, f := range out.frames() {
		if net.HardwareAddr(f[6:12]).String() == pcMAC { // the bridge itself may speak
			t.Errorf("bridged out: % x", f)
		}
	}
}

// The machine's other interfaces do not notice us.
func TestOtherInterfacesAreLeftAlone(t *testing.T) {
	r := newRig(t)
	other := netns.ForTest(t, "other")[0]
	r.must(netns.Veth(r.gw, "oth0", other, "eth0"))
	r.must(r.gw.Address("oth0", netip.MustParsePrefix("192.0.2.1/24")))
	r.must(other.Address("eth0", netip.MustParsePrefix("192.0.2.2/24")))
	r.must(other.Route(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.1")))
	r.must(r.up.Route(netip.MustParsePrefix("192.0.2.0/24"), netip.MustParseAddr("203.0.113.1")))
	r.must(r.gw.Sysctl("net.ipv4.conf.oth0.forwarding", "1"))
	r.start()
	r.listen(r.up, upIP+":80")
	r.listen(r.gw, "192.0.2.1:22")
	for _, step := range []func(){func() {}, func() { r.openBoot(first) }, func() { r.must(r.phase(first, v1.Phase_PHASE_RUN, time.Minute)) },
		func() { r.must(r.phase(first, v1.Phase_PHASE_QUARANTINE, 0)) }} {
		step()
		for _, to := range []string{upIP + ":80", "192.0.2.1:22"} {
			c, err := other.Dial(r.ctx(), "tcp4", to)
			if err != nil {
				t.Fatalf("%s in phase %s: %v", to, r.status().Phase, err)
			}
			c.Close()
		}
	}
	// The PC does not reach the other network, nor the other network the PC.
	if c, err := r.dial("192.0.2.2:22", 200*time.Millisecond); err == nil {
		c.Close()
		t.Error("the PC reaches the other network")
	}
}

// The static deny file holds alone, and gatewayd takes over from it.
func TestInvariant01_StaticDenyHoldsUntilTheDaemonTakesOver(t *testing.T) {
	r := newRig(t)
	if _, err := r.gw.Run(r.ctx(), "nft", "-D", "port=pc0", "-f", "../../systemd/portcullis-deny.nft"); err != nil {
		t.Fatal(err)
	}
	r.routing()
	out, send := r.capture(r.up, "eth0"), r.sender()
	for _, a := range attacks {
		send.send(a.frame())
	}
	if n := len(out.frames()); n != 0 {
		t.Errorf("%d frames passed the static deny", n)
	}
	r.start()
	text, err := r.gw.Run(r.ctx(), "nft", "list", "tables")
	r.must(err)
	if strings.Contains(string(text), "portcullis-deny") {
		t.Error("the static deny is still there: boots cannot work")
	}
	r.openBoot(first)
	r.listen(r.gw, gwIP+":80")
	c, err := r.dial(gwIP+":80", 2*time.Second)
	r.must(err)
	c.Close()
}

// TFTP answers come from a port of their own; that works in the boot phase and nowhere else.
func TestTFTPWorksInTheBootPhaseOnly(t *testing.T) {
	r := newRig(t)
	r.start()
	server, err := r.gw.ListenPacket("udp4", gwIP+":69")
	r.must(err)
	defer server.Close()
	go func() {
		buf := make([]byte, 600)
		for {
			_, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			data, err := r.gw.ListenPacket("udp4", gwIP+":0")
			if err != nil {
				return
			}
			data.WriteTo([]byte("block 1"), from)
			data.SetReadDeadline(time.Now().Add(time.Second))
			if _, _, err := data.ReadFrom(buf); err == nil {
				data.WriteTo([]byte("block 2"), from)
			}
			data.Close()
		}
	}()
	fetch := func() bool {
		c, err := r.pc.ListenPacket("udp4", pcIP+":0")
		r.must(err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(500 * time.Millisecond))
		c.WriteTo([]byte("read"), &net.UDPAddr{IP: net.ParseIP(gwIP), Port: 69})
		buf := make([]byte, 600)
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return false
		}
		c.WriteTo([]byte("ack 1"), from)
		n, _, err := c.ReadFrom(buf)
		return err == nil && string(buf[:n]) == "block 2"
	}
	if fetch() {
		t.Error("TFTP works while idle")
	}
	r.openBoot(first)
	r.eventually("TFTP works in the boot phase", fetch)
	r.must(r.phase(first, v1.Phase_PHASE_ATTEST, 0))
	if fetch() {
		t.Error("TFTP works after the boot phase")
	}
	if s := r.status(); len(s.Bans) != 0 || s.Dropped["input-udp"] != 0 {
		t.Errorf("a netboot was taken for an attack: %v", s.Dropped)
	}
}

// The uplink is a USB adapter that is pulled and put back: the run goes on without
// it, and the grant works again after the next renewal.
func TestUplinkThatComesAndGoes(t *testing.T) {
	r := newRig(t)
	r.start()
	r.must(r.gw.DeleteLink("up0"))
	r.openBoot(first)
	r.grant("tcp", addrPort(upIP+":80"), time.Minute)
	if err := r.phase(first, v1.Phase_PHASE_RUN, time.Minute); err != nil {
		t.Fatalf("no run without an uplink: %v", err)
	}
	r.must(netns.Veth(r.gw, "up0", r.up, "eth0"))
	r.must(r.gw.Address("up0", netip.MustParsePrefix("203.0.113.1/24")))
	r.must(r.up.Address("eth0", netip.MustParsePrefix(upIP+"/24")))
	r.listen(r.up, upIP+":80")
	r.must(r.phase(first, v1.Phase_PHASE_RUN, time.Minute))
	c, err := r.dial(upIP+":80", 2*time.Second)
	if err != nil {
		t.Fatalf("the grant does not come back with its uplink: %v", err)
	}
	c.Close()
}
