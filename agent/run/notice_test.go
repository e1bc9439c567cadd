package run

import (
	"context"
	"net"
	"testing"
	"time"

	"portcullis/agent/channel"
	"portcullis/attestserver/protocol"
)

// watchful is a probe that notices something when the test says so.
type watchful struct{ f func() }

func (*watchful) Name() string { return "uevent" }
func (*watchful) Run(context.Context, protocol.OpKey, []byte) (protocol.Output, error) {
	return protocol.Output{}, nil
}
func (w *watchful) Alarm(f func()) { w.f = f }

// A notice goes over the connection that is the last one, at most one a second,
// and only to a gateway that takes them.
func TestNotices(t *testing.T) {
	w := &watchful{}
	s := &server{probes: map[string]protocol.Probe{"uevent": w}}
	s.notices()
	w.f() // no connection yet
	old, _ := net.Pipe()
	s.latest.Store(&channel.Conn{Stream: protocol.NewStream(old)})
	w.f() // a gateway that takes none: a write would wait for ever
	ours, theirs := net.Pipe()
	defer theirs.Close()
	s.latest.Store(&channel.Conn{Stream: protocol.NewStream(ours), Notices: true})
	sent := make(chan bool)
	go func() { w.f(); w.f(); close(sent) }()
	theirs.SetDeadline(time.Now().Add(10 * time.Second))
	m, err := protocol.NewStream(theirs).Receive(protocol.MaxFrame)
	if err != nil || m.GetNotice().GetProbe() != "uevent" {
		t.Fatalf("%v %v", m, err)
	}
	select {
	case <-sent: // the second one was not sent: it would wait for a reader
	case <-time.After(10 * time.Second):
		t.Error("two notices at once")
	}
}
