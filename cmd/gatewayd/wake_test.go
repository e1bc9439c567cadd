package main

import (
	"bytes"
	"net"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/gateway/link"
)

// The magic packet for the known PC passes the port in every phase; one for another
// machine, and anything else under its protocol number, does not.
func TestOnlyTheMagicPacketOfTheKnownPCPasses(t *testing.T) {
	r := newRig(t)
	r.start()
	at := r.capture(r.pc, "eth0")
	wanted, _ := net.ParseMAC(pcMAC)
	other, _ := net.ParseMAC("52:54:00:99:99:99")
	seen := func() (n int) {
		for _, f := range at.frames() {
			if f[12] == link.EtherWake>>8 && f[13] == link.EtherWake&0xff {
				n++
				if !bytes.Equal(f[:6], wanted) || !bytes.Equal(f[14:], link.MagicPacket(wanted)) {
					t.Errorf("%x", f)
				}
			}
		}
		return n
	}
	wake := func() {
		t.Helper()
		_, err := r.client.Wake(r.ctx(), connect.NewRequest(&v1.WakeRequest{}))
		r.must(err)
		r.eventually("the magic packet", func() bool { return seen() == 1 })
	}
	wake()
	r.wait("wake", map[string]any{"mac": pcMAC})
	r.run(time.Minute)
	wake()
	// What somebody else on the Pi would send.
	index, err := r.gw.Index("pc0")
	r.must(err)
	r.must(r.gw.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, x := range []struct {
			to   net.HardwareAddr
			data []byte
		}{
			{other, link.MagicPacket(other)}, {wanted, link.MagicPacket(other)}, {wanted, []byte("what a PC must not be told")},
			{net.HardwareAddr{255, 255, 255, 255, 255, 255}, link.MagicPacket(wanted)},
		} {
			to := &unix.SockaddrLinklayer{Protocol: link.EtherWake>>8 | link.EtherWake&0xff<<8, Ifindex: index, Halen: 6}
			copy(to.Addr[:], x.to)
			unix.Sendto(fd, x.data, 0, to) // a packet that the egress hook drops may be an error here
		}
		return nil
	}))
	wake() // and nothing beside it
}

func TestStatusTellsOfTheCable(t *testing.T) {
	r := newRig(t)
	r.start()
	r.eventually("the carrier", func() bool { return r.status().Carrier })
	before := r.status().CarrierLosses
	r.must(r.pc.Down("eth0"))
	r.eventually("the loss", func() bool { s := r.status(); return !s.Carrier && s.CarrierLosses == before+1 })
}
