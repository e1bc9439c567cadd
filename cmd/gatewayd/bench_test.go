package main

import (
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
)

// BenchmarkQuarantine is from the call on the socket to the answer: kernel, state
// file and read-back included. A quarantine ends with the next boot, so each has its own.
func BenchmarkQuarantine(b *testing.B) {
	r := newRig(b)
	r.start()
	i := 0
	for b.Loop() {
		b.StopTimer()
		session := sessionNumber(i)
		i++
		r.openBoot(session)
		r.must(r.phase(session, v1.Phase_PHASE_RUN, time.Minute))
		r.grant("tcp", addrPort(upIP+":80"), time.Minute)
		b.StartTimer()
		r.must(r.phase(session, v1.Phase_PHASE_QUARANTINE, 0))
	}
}

// sessionNumber names session i.
func sessionNumber(i int) string {
	name := []byte(first)
	for j, n := len(name)-1, i; j > 0; j, n = j-1, n/26 {
		name[j] = byte('a' + n%26)
	}
	return string(name)
}

// BenchmarkRenew is what attestd does after every trusted verdict.
func BenchmarkRenew(b *testing.B) {
	r := newRig(b)
	r.start()
	r.run(time.Minute)
	for b.Loop() {
		r.must(r.phase(first, v1.Phase_PHASE_RUN, time.Minute))
	}
}

// BenchmarkGrant adds a grant and revokes it.
func BenchmarkGrant(b *testing.B) {
	r := newRig(b)
	r.start()
	r.run(time.Hour)
	for b.Loop() {
		g := r.grant("tcp", addrPort(upIP+":80"), time.Minute)
		_, err := r.client.RevokeGrant(r.ctx(), connect.NewRequest(&v1.RevokeGrantRequest{Id: g.Id}))
		r.must(err)
	}
}

// BenchmarkOpenBoot is the time between a boot request and the moment its offer may be sent.
func BenchmarkOpenBoot(b *testing.B) {
	r := newRig(b)
	r.start()
	for i := 0; b.Loop(); i++ {
		r.openBoot(sessionNumber(i))
	}
}
