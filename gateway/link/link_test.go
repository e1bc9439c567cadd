package link

import (
	"context"
	"testing"
	"time"

	"portcullis/internal/netns"
)

func TestReadAndHarden(t *testing.T) {
	hosts := netns.ForTest(t, "a", "b")
	a, b := hosts[0], hosts[1]
	read := func() State {
		t.Helper()
		var s State
		if err := a.Do(func() (err error) { s, err = Read("port"); return err }); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := read(); s != (State{}) {
		t.Errorf("a port that is not there reads %+v", s)
	}
	if err := a.Do(func() error { return Harden("port") }); err == nil {
		t.Error("a port that is not there was hardened")
	}
	if err := netns.Veth(a, "port", b, "port"); err != nil {
		t.Fatal(err)
	}
	if s := read(); s.Index == 0 || s.Master != 0 {
		t.Errorf("the port reads %+v", s)
	}
	if err := a.Do(func() error { return Harden("port") }); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"net.ipv6.conf.port.disable_ipv6": "1", "net.ipv4.conf.port.rp_filter": "1", "net.ipv4.conf.port.arp_ignore": "1",
		"net.ipv4.conf.port.arp_announce": "2", "net.ipv4.conf.port.send_redirects": "0", "net.ipv4.conf.port.accept_source_route": "0"} {
		if got, err := a.ReadSysctl(key); err != nil || got != want {
			t.Errorf("%s is %s, want %s (%v)", key, got, want, err)
		}
	}
	for _, on := range []bool{true, false} {
		if err := a.Do(func() error { return Forward("port", on) }); err != nil {
			t.Fatal(err)
		}
		if got, _ := a.ReadSysctl("net.ipv4.conf.port.forwarding"); got == "1" != on {
			t.Errorf("forwarding is %s, want %v", got, on)
		}
	}
	if got, _ := a.ReadSysctl("net.ipv4.ip_forward"); got != "0" {
		t.Error("the whole machine became a router")
	}
}

func TestWatchTellsEachChangeOnce(t *testing.T) {
	hosts := netns.ForTest(t, "a", "b")
	a, b := hosts[0], hosts[1]
	ctx, cancel := context.WithCancel(context.Background())
	states, ended := make(chan State, 64), make(chan error, 1)
	go func() {
		ended <- a.Do(func() error { return Watch(ctx, "port", func(s State) { states <- s }) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	until := func(what string, ok func(State) bool) State {
		t.Helper()
		for {
			select {
			case s := <-states:
				if ok(s) {
					return s
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%s was not told", what)
			}
		}
	}
	until("the missing port", func(s State) bool { return s == State{} })
	for range 2 {
		if err := netns.Veth(a, "port", b, "port"); err != nil {
			t.Fatal(err)
		}
		up := until("the carrier", func(s State) bool { return s.Index != 0 && s.Carrier })
		if err := b.Down("port"); err != nil {
			t.Fatal(err)
		}
		until("the lost carrier", func(s State) bool { return s.Index == up.Index && !s.Carrier })
		if err := a.DeleteLink("port"); err != nil {
			t.Fatal(err)
		}
		until("the missing port", func(s State) bool { return s.Index == 0 })
	}
}
