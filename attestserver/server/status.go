package server

import (
	"sync/atomic"
	"time"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
)

// view is what the core shows of itself.
type view struct {
	verdict verdict.Verdict
	image   *openImage
	agent   bool  // its channel is up
	entries int64 // of the log, up to and with the PC's own newest one
}

func (c *core) view() *view { return &view{c.machine.Verdict(), c.image, c.link != nil, c.entries} }

// status answers for the core without waiting for it.
type status struct {
	o       *Options
	s       *Server
	now     atomic.Pointer[view]
	refused atomic.Uint64
}

func (s *status) set(v *view) { s.now.Store(v) }

// current is what is believed now. A verdict past its time is never shown as
// trusted, whatever became of the goroutine that should have ended it.
func (s *status) current() *view {
	w := *s.now.Load()
	if v := &w.verdict; !v.NotAfter.IsZero() && !s.o.Clock.Now().Before(v.NotAfter) {
		v.State, v.Tier, v.NotAfter = verdict.Unknown, protocol.TierSoftware, time.Time{}
	}
	return &w
}

func (s *status) getVerdict() *portcullisv1.GetVerdictResponse {
	w := s.current()
	v := w.verdict
	r := &portcullisv1.GetVerdictResponse{
		Pc:      s.o.Name,
		Session: v.Session, State: apiState(v.State), Tier: string(v.Tier), Posture: s.o.Posture,
		Challenges: v.Challenges, Failures: v.Failures, EvidenceDigest: v.Evidence[:], Warnings: s.o.warnings(v.Warnings),
	}
	if !v.NotAfter.IsZero() {
		r.NotAfterMs = v.NotAfter.UnixMilli()
	}
	if w.image != nil {
		m := w.image.Manifest
		r.Image, r.ImageVersion, r.LabImage = m.Image, m.Version, m.LabChannel
		r.KtextMaskedBytes, r.KtextTotalBytes = uint64(max(m.Mask.Bytes, 0)), uint64(max(m.Mask.Total, 0))
	}
	for _, f := range v.Findings {
		r.Findings = append(r.Findings, &portcullisv1.Finding{TimeMs: f.Time.UnixMilli(), Sequence: f.Sequence,
			Probe: f.Probe, Reason: f.Reason, Detail: f.Detail})
	}
	return r
}

func apiState(s verdict.State) portcullisv1.TrustState {
	switch s {
	case verdict.Unknown:
		return portcullisv1.TrustState_TRUST_STATE_UNKNOWN
	case verdict.Enrolling:
		return portcullisv1.TrustState_TRUST_STATE_ENROLLING
	case verdict.Trusted:
		return portcullisv1.TrustState_TRUST_STATE_TRUSTED
	case verdict.Suspect:
		return portcullisv1.TrustState_TRUST_STATE_SUSPECT
	case verdict.Quarantined:
		return portcullisv1.TrustState_TRUST_STATE_QUARANTINED
	}
	return portcullisv1.TrustState_TRUST_STATE_UNSPECIFIED
}
