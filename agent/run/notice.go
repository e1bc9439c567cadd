package run

import (
	"time"

	"golang.org/x/time/rate"

	"portcullis/attestserver/protocol"
)

// Alarmer is a probe that notices something between two challenges. It calls f
// in a goroutine of its own, at any time and as often as it likes.
type Alarmer interface {
	protocol.Probe
	Alarm(f func())
}

// noticeEvery bounds the notices of one connection; the gateway bounds them as well.
const noticeEvery = time.Second

// notices has probes that notice something ask for an early challenge on the
// connection that is the last one then.
func (s *server) notices() {
	pace := rate.NewLimiter(rate.Every(noticeEvery), 1)
	for _, p := range s.probes {
		a, ok := p.(Alarmer)
		if !ok {
			continue
		}
		m := &protocol.Message{Body: &protocol.Message_Notice{Notice: &protocol.Notice{Probe: p.Name()}}}
		a.Alarm(func() {
			if conn := s.latest.Load(); conn != nil && conn.Notices && pace.Allow() {
				// A connection that has ended is met by who reads from it.
				_ = conn.Send(m)
			}
		})
	}
}
