package main

import (
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
)

// The unit gives gatewayd a user of its own and two capabilities. All that it does works so.
func TestTwoCapabilitiesAreEnough(t *testing.T) {
	r := newRig(t)
	const nobody = 65534
	const netAdmin, netRaw = 12, 13
	r.must(os.Chown(r.dir, nobody, nobody))
	r.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: []uintptr{netAdmin, netRaw}}
	r.must(os.Chmod(programDir, 0o755))
	r.banAfter = 2
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(time.Minute, netip.MustParseAddrPort(upIP+":80"))
	c, err := r.dial(upIP+":80", 2*time.Second)
	r.must(err)
	defer c.Close()
	if !r.carries(c) {
		t.Error("a granted flow does not pass")
	}
	if v, err := r.gw.ReadSysctl("net.ipv4.conf.pc0.arp_ignore"); err != nil || v != "1" {
		t.Errorf("arp_ignore is %s, %v", v, err)
	}
	r.must(r.phase(first, v1.Phase_PHASE_QUARANTINE, 0))
	for range 2 {
		r.sender().send(udpTo(upIP, 1, 2, "x"))
	}
	r.wait("violation", map[string]any{"reason": "forward-udp"})
	r.wait("ban", nil)
	r.openBoot(second)
	for e := range r.drain() {
		if e["event"] == "gateway.failed" {
			t.Errorf("%v", e)
		}
	}
}

// drain gives the events that are there already.
func (r *rig) drain() func(func(map[string]any) bool) {
	return func(yield func(map[string]any) bool) {
		for {
			select {
			case e := <-r.events:
				if e == nil || !yield(e) {
					return
				}
			default:
				return
			}
		}
	}
}

// A stop is a clean end of a run: nothing passes without an owner, and the exit is 0.
func TestStopEndsTheRun(t *testing.T) {
	r := newRig(t)
	r.start()
	r.listen(r.up, upIP+":80")
	r.run(time.Minute, addrPort(upIP+":80"))
	s := r.stream(upIP + ":80")
	child := r.child
	r.must(child.Process.Signal(syscall.SIGTERM))
	r.wait("phase", map[string]any{"phase": "attest", "reason": "shutdown"})
	if err := child.Wait(); err != nil {
		t.Errorf("gatewayd ended with %v", err)
	}
	r.child = nil
	r.routing()
	r.over(s, 3)
}
