package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
)

// stream sends a byte over an echo connection as soon as the one before has come back, and keeps when that was.
type stream struct {
	conn       net.Conn
	last       atomic.Int64
	sent, back atomic.Int64
	late       atomic.Bool // from now on it sends another byte, whether the one before has come back or not
}

func (r *rig) stream(to string) *stream {
	r.t.Helper()
	c, err := r.dial(to, 2*time.Second)
	r.must(err)
	s := &stream{conn: c}
	r.t.Cleanup(func() { c.Close() })
	go func() {
		for b := make([]byte, 1); ; {
			if _, err := c.Read(b); err != nil {
				return
			}
			s.back.Add(1)
			s.last.Store(time.Now().UnixNano())
		}
	}()
	go func() {
		for range time.Tick(time.Millisecond) {
			b := []byte{1}
			switch {
			case s.late.Load():
				b[0] = lateByte
			case s.sent.Load() > s.back.Load():
				continue
			}
			s.sent.Add(1)
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	r.eventually("the stream runs", func() bool { return s.last.Load() != 0 })
	return s
}

const lateByte = 2

// over sees that a flow has ended: the PC goes on sending, what it sends comes to the Pi, and nothing of what it
// sends from now on comes out of it. n is how many of its packets are waited for.
func (r *rig) over(s *stream, n int) {
	r.t.Helper()
	out, in := r.capture(r.up, "eth0"), r.capture(r.gw, r.port) // in this order: what is seen to come in is seen to come out
	s.late.Store(true)
	port := uint16(s.conn.LocalAddr().(*net.TCPAddr).Port)
	for limit := time.Now().Add(time.Minute); n > 0; time.Sleep(time.Millisecond) {
		for _, f := range in.frames() {
			if len(sentBy(port, f)) > 0 {
				n--
			}
		}
		if time.Now().After(limit) {
			r.t.Fatal("the PC does not send any more: this shows nothing")
		}
	}
	for _, f := range out.frames() {
		if bytes.IndexByte(sentBy(port, f), lateByte) >= 0 {
			r.t.Fatalf("passed behind the end of the flow: % x", f)
		}
	}
}

// sentBy is what a frame carries of a TCP flow, by the PC's port in it.
func sentBy(port uint16, f []byte) []byte {
	ip := f[14:]
	if f[12] != 8 || ip[9] != 6 || binary.BigEndian.Uint16(ip[20:]) != port {
		return nil
	}
	return ip[20+int(ip[20+12]>>4)*4 : binary.BigEndian.Uint16(ip[2:])]
}

// stop ends a flow with one packet, and all that is sent again with it: a PC that goes on for long is banned.
func (s *stream) stop() {
	s.conn.(*net.TCPConn).SetLinger(0)
	s.conn.Close()
}

// inSet tells whether the kernel has an element in a set of the port's table, by a part of what nft shows of it.
func (r *rig) inSet(set, element string) bool {
	r.t.Helper()
	table := "portcullis"
	if r.name != "" {
		table += "." + r.name
	}
	out, err := r.gw.Run(r.ctx(), "nft", "list", "set", "inet", table, set)
	r.must(err)
	_, elements, _ := strings.Cut(string(out), "elements = ")
	return strings.Contains(elements, element)
}

// An established flow is over when the call that ends it is answered. How soon that is, BenchmarkQuarantine and
// BenchmarkQuarantineAfterVerdict tell.
func TestEstablishedFlowIsCut(t *testing.T) {
	cases := []struct {
		name string
		cut  func(r *rig, g *v1.Grant) error
	}{
		{"by quarantine", func(r *rig, _ *v1.Grant) error { return r.phase(first, v1.Phase_PHASE_QUARANTINE, 0) }},
		{"by attest", func(r *rig, _ *v1.Grant) error { return r.phase(first, v1.Phase_PHASE_ATTEST, 0) }},
		{"by revoke", func(r *rig, g *v1.Grant) error {
			_, err := r.client.RevokeGrant(r.ctx(), connect.NewRequest(&v1.RevokeGrantRequest{Id: g.Id}))
			return err
		}},
		{"TestInvariant04 by a boot request", func(r *rig, _ *v1.Grant) error {
			_, err := r.client.OpenBoot(r.ctx(), connect.NewRequest(&v1.OpenBootRequest{Session: second, Mac: pcMAC, Address: pcIP}))
			return err
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.start()
			r.listen(r.up, upIP+":80")
			r.run(time.Minute)
			g := r.grant("tcp", addrPort(upIP+":80"), time.Minute)
			s := r.stream(upIP + ":80")
			r.must(c.cut(r, g))
			s.late.Store(true) // from the answer on
			r.routing()
			r.over(s, 3)
		})
	}
}

// TestInvariant04_OpenBootEndsRunBeforeItAnswers: a second boot request opens a new
// session; nothing of the old one, not even its agent channel, is known any more.
func TestInvariant04_OpenBootEndsTheOldSession(t *testing.T) {
	r := newRig(t)
	r.start()
	r.listen(r.gw, gwIP+":7443")
	r.run(time.Minute)
	agent, err := r.dial(gwIP+":7443", 2*time.Second)
	r.must(err)
	defer agent.Close()
	if !r.carries(agent) {
		t.Fatal("no agent channel")
	}
	r.openBoot(second)
	if r.passes(agent) {
		t.Error("the old session's agent channel goes on")
	}
	if err := r.phase(first, v1.Phase_PHASE_RUN, time.Minute); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("the old session's run was not refused: %v", err)
	}
	r.openBoot(second) // a retransmitted request
	if s := r.status(); s.Session != second || s.Phase != v1.Phase_PHASE_BOOT {
		t.Errorf("session %s phase %s", s.Session, s.Phase)
	}
	fresh, err := r.dial(gwIP+":7443", 2*time.Second)
	if err != nil {
		t.Fatalf("the new session's agent cannot connect: %v", err)
	}
	fresh.Close()
}

// Swaps of the whole ruleset under a flood of forbidden packets let none through.
func TestSwapsUnderFloodLeakNothing(t *testing.T) {
	r := newRig(t)
	r.start()
	r.run(time.Minute, addrPort(upIP+":80"))
	out, send := r.capture(r.up, "eth0"), r.sender()
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		frames := [][]byte{udpTo(upIP, 9, 9, "flood"), tcpTo(upIP, 9, 9, 2), echoTo(upIP)}
		n := 0
		for {
			select {
			case <-stop:
				sent <- n
				return
			default:
				send.send(frames[n%3])
				n++
			}
		}
	}()
	const swaps = 150
	var took []time.Duration
	for i := range swaps {
		to := v1.Phase_PHASE_RUN
		if i%2 == 0 {
			to = v1.Phase_PHASE_ATTEST
		}
		began := time.Now()
		r.must(r.phase(first, to, time.Minute))
		took = append(took, time.Since(began))
		r.must(r.gw.Sysctl("net.ipv4.conf.pc0.forwarding", "1"))
	}
	close(stop)
	n := <-sent
	leaked := 0
	for range out.frames() {
		leaked++
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	t.Logf("%d swaps under %d packets: %d leaked; a swap took %s (median), %s (longest)", swaps, n, leaked, took[swaps/2], took[swaps-1])
	if leaked != 0 {
		t.Errorf("%d frames leaked", leaked)
	}
	if n < 10*swaps {
		t.Errorf("only %d packets were sent: no flood", n)
	}
}

// The other end does not stop because the PC fell silent: what it goes on sending
// stays outside from the moment of the cut.
func TestNothingComesInAfterTheCut(t *testing.T) {
	for name, cut := range map[string]func(r *rig, g *v1.Grant){
		"quarantine": func(r *rig, _ *v1.Grant) { r.must(r.phase(first, v1.Phase_PHASE_QUARANTINE, 0)) },
		"revoke": func(r *rig, g *v1.Grant) {
			_, err := r.client.RevokeGrant(r.ctx(), connect.NewRequest(&v1.RevokeGrantRequest{Id: g.Id}))
			r.must(err)
		},
		"boot request": func(r *rig, _ *v1.Grant) { r.openBoot(second) },
		"run not renewed, daemon dead": func(r *rig, _ *v1.Grant) {
			r.must(r.phase(first, v1.Phase_PHASE_RUN, time.Millisecond))
			r.kill(syscall.SIGKILL)
			r.eventually("the kernel has ended the run", func() bool { return !r.inSet("run", "pc0") })
		},
		"ban of the link table": func(r *rig, _ *v1.Grant) {
			r.sender().send(arpFrom(pcMAC, gwIP, 2))
			r.eventually("ban", func() bool { return len(r.status().Bans) == 1 })
		},
		"ban of the IP table": func(r *rig, _ *v1.Grant) {
			r.sender().send(udpTo(upIP, 1, 2, "x"))
			r.eventually("ban", func() bool { return len(r.status().Bans) == 1 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.banAfter = 1
			r.start()
			r.run(time.Minute)
			g := r.grant("udp", addrPort(upIP+":5000"), time.Minute)
			server, err := r.up.ListenPacket("udp4", upIP+":5000")
			r.must(err)
			defer server.Close()
			pc, err := r.pc.ListenPacket("udp4", pcIP+":6000")
			r.must(err)
			defer pc.Close()
			_, err = pc.WriteTo([]byte("begin"), &net.UDPAddr{IP: net.ParseIP(upIP), Port: 5000})
			r.must(err)
			_, from, err := server.ReadFrom(make([]byte, 16))
			r.must(err)
			var text atomic.Value
			text.Store("more")
			go func() {
				for {
					if _, err := server.WriteTo([]byte(text.Load().(string)), from); err != nil {
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			in, out := r.capture(r.pc, "eth0"), r.capture(r.gw, "up0")
			seen := 0
			r.eventually("the stream runs", func() bool { seen += len(in.frames()); return seen > 10 })
			cut(r, g)
			text.Store("late") // a frame that was on the cable is not meant
			r.routing()
			late := 0
			r.eventually("the other end goes on", func() bool {
				for _, f := range out.frames() {
					if bytes.Contains(f, []byte("late")) {
						late++
					}
				}
				return late > 50
			})
			for _, f := range in.frames() {
				if bytes.Contains(f, []byte("late")) {
					t.Fatalf("came in after the cut: % x", f)
				}
			}
		})
	}
}
