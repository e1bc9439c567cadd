package main

import (
	"net"
	"sort"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
)

// stream writes a byte every millisecond and keeps when the last came back.
type stream struct {
	conn net.Conn
	last atomic.Int64
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
			s.last.Store(time.Now().UnixNano())
		}
	}()
	go func() {
		for range time.Tick(time.Millisecond) {
			if _, err := c.Write([]byte{1}); err != nil {
				return
			}
		}
	}()
	r.eventually("the stream runs", func() bool { return s.last.Load() != 0 })
	return s
}

// cutAfter waits until nothing comes any more and tells how long after t that was.
func (s *stream) cutAfter(t time.Time) time.Duration {
	for {
		last := s.last.Load()
		time.Sleep(200 * time.Millisecond)
		if s.last.Load() == last {
			return max(time.Unix(0, last).Sub(t), 0)
		}
	}
}

const cutLimit = 50 * time.Millisecond

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
			asked := time.Now()
			r.must(c.cut(r, g))
			answered := time.Now()
			r.routing()
			took := s.cutAfter(asked)
			t.Logf("asked, answered after %s, last byte %s after asking", answered.Sub(asked), took)
			if took > cutLimit {
				t.Errorf("the flow lived %s, want at most %s", took, cutLimit)
			}
			if s.last.Load() > answered.Add(5*time.Millisecond).UnixNano() {
				t.Errorf("bytes passed after the answer")
			}
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
	if !r.passes(agent) {
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
			go func() {
				for {
					if _, err := server.WriteTo([]byte("more"), from); err != nil {
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			in := r.capture(r.pc, "eth0")
			seen := 0
			r.eventually("the stream runs", func() bool { seen += len(in.frames()); return seen > 10 })
			cut(r, g)
			time.Sleep(5 * time.Millisecond) // the frame that was on the cable
			in.frames()
			r.must(r.gw.Sysctl("net.ipv4.conf.pc0.forwarding", "1"))
			time.Sleep(200 * time.Millisecond)
			for _, f := range in.frames() {
				if f[14+9] == 17 {
					t.Fatalf("came in after the cut: % x", f)
				}
			}
		})
	}
}
