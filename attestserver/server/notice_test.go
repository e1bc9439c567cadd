package server_test

import (
	"slices"
	"testing"
	"time"

	"portcullis/attestserver/protocol"
)

func (p *puppet) notice(probe string) {
	p.t.Helper()
	if err := p.Send(&protocol.Message{Body: &protocol.Message_Notice{Notice: &protocol.Notice{Probe: probe}}}); err != nil {
		p.t.Fatal(err)
	}
}

// quiet is a lab whose next challenge is far away.
func quiet(t *testing.T) (*lab, *puppet) {
	t.Helper()
	l := newLab(t)
	l.mean, l.min = 10*time.Minute, 5*time.Minute
	l.pxed.open(sid)
	l.start()
	p := l.puppet(sid, newKey(t))
	p.send(p.evidence(p.challenge()))
	l.awaitState(0, "trusted")
	return l, p
}

// A notice brings a burst, and the first of it asks the probe that noticed.
func TestNotice_BringsABurst(t *testing.T) {
	l, p := quiet(t)
	from := l.events.count()
	p.notice("net")
	for i := range 3 {
		c := p.challenge()
		if i == 0 && !slices.ContainsFunc(c.Ops, func(o *protocol.Op) bool { return o.Name == "net" }) {
			t.Errorf("net is not asked: %v", c.Ops)
		}
		p.send(p.evidence(c))
	}
	l.await(from, "agent.notice", map[string]any{"probe": "net"})
	if v := l.verdict(); v.State.String() != "VERDICT_STATE_TRUSTED" && v.Failures != 0 {
		t.Errorf("a notice failed something: %v", v)
	}
}

// A probe that this gateway does not know (a newer image) makes nothing happen.
func TestNotice_OfAnUnknownProbeIsIgnored(t *testing.T) {
	l, p := quiet(t)
	from := l.events.count()
	p.notice("tomorrow")
	p.notice("net")
	p.challenge()
	if _, m, _ := l.events.find(from, "agent.notice", map[string]any{"probe": "tomorrow"}); m != nil {
		t.Error("an unknown probe was noticed")
	}
}

// Who sends more notices than an agent does is no agent, and cannot use them to
// have the gateway work for it.
func TestNotice_FloodEndsTheConnection(t *testing.T) {
	l, p := quiet(t)
	from := l.events.count()
	for range 30 {
		if p.Send(&protocol.Message{Body: &protocol.Message_Notice{Notice: &protocol.Notice{Probe: "net"}}}) != nil {
			break // it has ended already
		}
	}
	l.await(from, "finding", map[string]any{"reason": protocol.EvidenceMalformed})
}
