package server

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io/fs"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/fingerprint"
	"portcullis/attestserver/protocol"
	"portcullis/internal/event"
)

// Fingerprints serves the Fingerprint service. It reads the references beside
// the core; what it writes is a signed approval, and package fingerprint keeps
// that and the judgement of an answer apart. All fields but Operators are needed.
type Fingerprints struct {
	Refs      protocol.References
	Events    *event.Writer
	Refused   *rate.Limiter       // of events about refused approvals
	Machine   string              // MAC of the one PC, where a call names none; "" = none is the one
	Operators []ed25519.PublicKey // who may approve
	Approved  func()              // is called after each approval
}

// machine is the one that is asked for.
func (f *Fingerprints) machine(asked string) (string, error) {
	if asked == "" {
		asked = f.Machine
	}
	if asked == "" {
		return "", connect.NewError(connect.CodeInvalidArgument, errors.New("which machine? name its MAC"))
	}
	return asked, nil
}

func (f *Fingerprints) load(asked string) (*fingerprint.Record, *fingerprint.Pending, error) {
	mac, err := f.machine(asked)
	if err != nil {
		return nil, nil, err
	}
	r, err := fingerprint.Load(f.Refs, mac)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, connect.NewError(connect.CodeNotFound,
			&fingerprint.Error{Reason: fingerprint.ReasonNone, Detail: "nothing is enrolled of " + mac})
	}
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeDataLoss, err)
	}
	p, err := fingerprint.LoadPending(f.Refs, mac)
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeDataLoss, err)
	}
	return r, p, nil
}

// GetFingerprint shows the fingerprint and what waits.
func (f *Fingerprints) GetFingerprint(_ context.Context, req *connect.Request[portcullisv1.GetFingerprintRequest]) (*connect.Response[portcullisv1.GetFingerprintResponse], error) {
	r, p, err := f.load(req.Msg.Machine)
	if err != nil {
		return nil, err
	}
	m := &portcullisv1.GetFingerprintResponse{Machine: r.Machine, Generation: r.Generation, Root: r.Root, Boots: uint32(len(r.Boots)),
		BootsNeeded: fingerprint.EnrolBoots, ApprovedBy: r.ApprovedBy}
	for _, x := range r.Parts {
		m.Parts = append(m.Parts, &portcullisv1.FingerprintPart{Class: x.Class, Slot: x.Slot, Value: x.Value, Unstable: x.Unstable})
	}
	if p != nil {
		m.WaitingRoot, m.WaitingGeneration = p.Record.Root, p.Record.Generation
		for _, c := range p.Changes {
			m.Changes = append(m.Changes, &portcullisv1.FingerprintChange{Kind: c.Kind, Class: c.Class, Slot: c.Slot, Was: c.Was, Is: c.Is,
				Level: c.Level.String(), WithinSession: c.Within})
		}
	}
	return connect.NewResponse(m), nil
}

// ApproveFingerprint carries out a signed approval.
func (f *Fingerprints) ApproveFingerprint(_ context.Context, req *connect.Request[portcullisv1.ApproveFingerprintRequest]) (*connect.Response[portcullisv1.ApproveFingerprintResponse], error) {
	mac, err := f.machine(req.Msg.Machine)
	if err != nil {
		return nil, err
	}
	r, a, err := fingerprint.Approve(f.Refs, mac, req.Msg.Envelope, f.Operators)
	if err != nil {
		reason, detail := protocol.ProbeUnjudged, err.Error()
		var refused *fingerprint.Error
		if errors.As(err, &refused) {
			reason, detail = refused.Reason, refused.Detail
		}
		if f.Refused.Allow() {
			f.Events.Emit("fingerprint.refused", event.Fields{"machine": mac, "reason": reason, "detail": detail})
		}
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	f.Events.Emit("fingerprint.approved", event.Fields{"machine": mac, "of": a.Of, "generation": r.Generation, "root": r.Root,
		"key": r.ApprovedBy, "changes": len(a.Changes), "note": a.Note})
	f.Approved()
	return connect.NewResponse(&portcullisv1.ApproveFingerprintResponse{Of: a.Of, Generation: r.Generation, Root: r.Root,
		ApprovedBy: r.ApprovedBy}), nil
}

// OpenFingerprint opens one leaf.
func (f *Fingerprints) OpenFingerprint(_ context.Context, req *connect.Request[portcullisv1.OpenFingerprintRequest]) (*connect.Response[portcullisv1.OpenFingerprintResponse], error) {
	r, _, err := f.load(req.Msg.Machine)
	if err != nil {
		return nil, err
	}
	o, err := r.Open(req.Msg.Class, req.Msg.Slot)
	if err != nil {
		return nil, connect.NewError(connect.CodeNotFound, err)
	}
	b, err := json.Marshal(o)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&portcullisv1.OpenFingerprintResponse{Opening: b}), nil
}

// warnAnew takes back the warnings that an approval has ended.
func (c *core) warnAnew() {
	if c.image == nil || c.state == nil {
		return
	}
	for _, e := range c.image.expectations {
		if w, ok := e.(protocol.Warner); ok {
			c.machine.Stand(e.Name(), warningsOf(w, c.o.Refs, c.state))
		}
	}
}

// warningsOf asks an Expectation for what stands beside the verdict.
func warningsOf(w protocol.Warner, refs References, st *protocol.ImageState) (out []string) {
	for _, s := range w.Warnings(st, refs) {
		out = append(out, bounded(protocol.Finding{Detail: s}).Detail)
	}
	return out
}
