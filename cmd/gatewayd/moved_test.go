package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
)

// TestInvariant01_RackPortGivenUp: link.interface of a PC changes, and its gatewayd is started anew without a
// boot, after an end in order and after a kill in a run. It starts with the new port, owns its tables as
// before, and the static deny has the old one.
func TestInvariant01_RackPortGivenUp(t *testing.T) {
	k := newRack(t)
	k.deny()
	k.b.start()
	k.a.spawn()
	k.a.run(time.Minute, addrPort(upIP+":80"))
	text, err := os.ReadFile(k.a.config)
	k.a.must(err)
	moved := strings.Replace(string(text), "interface: "+portA, "interface: "+portNobody, 1)
	for name, signal := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		k.a.kill(signal)
		k.a.must(os.WriteFile(k.a.config, []byte(moved), 0o644))
		k.a.spawn()
		k.shut("given up, "+name, portA, portB, portNobody, trunk)
		if set := k.listed("set", "inet", "portcullis-deny", "open"); !strings.Contains(set, portNobody) || strings.Contains(set, portA) {
			t.Errorf("%s: open ports are\n%s", name, set)
		}
		if link := k.listed("table", "netdev", "portcullis-link.rack-a"); !strings.Contains(link, "owner") || !strings.Contains(link, `device "`+portNobody+`"`) {
			t.Errorf("%s: the link table is\n%s", name, link)
		}
		k.a.kill(syscall.SIGTERM)
		k.a.must(os.WriteFile(k.a.config, text, 0o644))
		k.a.spawn()
		k.shut("back, "+name, portA, portB, portNobody, trunk)
		if set := k.listed("set", "inet", "portcullis-deny", "open"); strings.Contains(set, portNobody) || !strings.Contains(set, portA) {
			t.Errorf("%s: after the way back open ports are\n%s", name, set)
		}
		k.a.must(k.a.phase(first, v1.Phase_PHASE_RUN, time.Minute))
	}
}

// TestInvariant01_PortChangedKeepsTheOldOneShut: on a Pi with one port nothing else would deny the old one. So
// gatewayd ends with what to do, and the tables of before go on, a granted run but for its time.
func TestInvariant01_PortChangedKeepsTheOldOneShut(t *testing.T) {
	r := newRig(t)
	r.start()
	r.run(time.Second)
	r.kill(syscall.SIGKILL)
	text, err := os.ReadFile(r.config)
	r.must(err)
	r.must(os.WriteFile(r.config, []byte(strings.Replace(string(text), "interface: pc0", "interface: pc9", 1)), 0o644))
	for range 2 {
		if said := r.refused("--config", r.config); !strings.Contains(said, "port-changed: ") || !strings.Contains(said, "boot the Pi") {
			t.Errorf("it says %q", said)
		}
		r.forward(r.port)
		out := r.capture(r.up, "eth0")
		for _, a := range attacks {
			r.sender().send(a.frame())
		}
		time.Sleep(50 * time.Millisecond)
		if n := len(out.frames()); n != 0 {
			t.Errorf("%d frames came out", n)
		}
	}
	r.start() // with the old one, as it was
	if s := r.status(); s.Phase != v1.Phase_PHASE_ATTEST || s.Session != first || s.Dropped["forward-tcp"] == 0 {
		t.Errorf("with the old port again it is %v", s)
	}
}
