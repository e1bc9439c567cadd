package server

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
)

var _ portcullisv1connect.FingerprintHandler = door{}

// of finds who answers for a machine: of several PCs the one with that address.
func (d door) of(machine string) (*Fingerprints, error) {
	i := 0
	if len(d.f.pcs) > 1 {
		i = slices.IndexFunc(d.f.pcs, func(s *Server) bool { return machine != "" && s.o.Machine == machine })
	}
	if i < 0 {
		err := &AskError{ReasonPCUnknown, fmt.Sprintf("no PC with the address %.40q", machine)}
		return nil, connect.NewError(askCode(err), err)
	}
	s := d.f.pcs[i]
	return &Fingerprints{Refs: s.o.Refs, Events: s.o.Events, Refused: s.refused, Machine: s.o.Machine, Operators: s.o.Operators,
		Approved: func() { s.post(func(c *core) { c.warnAnew() }) }}, nil
}

// GetFingerprint shows the fingerprint of a machine and what waits.
func (d door) GetFingerprint(ctx context.Context, r *connect.Request[portcullisv1.GetFingerprintRequest]) (*connect.Response[portcullisv1.GetFingerprintResponse], error) {
	f, err := d.of(r.Msg.Machine)
	if err != nil {
		return nil, err
	}
	return f.GetFingerprint(ctx, r)
}

// ApproveFingerprint carries out a signed approval.
func (d door) ApproveFingerprint(ctx context.Context, r *connect.Request[portcullisv1.ApproveFingerprintRequest]) (*connect.Response[portcullisv1.ApproveFingerprintResponse], error) {
	f, err := d.of(r.Msg.Machine)
	if err != nil {
		return nil, err
	}
	return f.ApproveFingerprint(ctx, r)
}

// OpenFingerprint opens one leaf.
func (d door) OpenFingerprint(ctx context.Context, r *connect.Request[portcullisv1.OpenFingerprintRequest]) (*connect.Response[portcullisv1.OpenFingerprintResponse], error) {
	f, err := d.of(r.Msg.Machine)
	if err != nil {
		return nil, err
	}
	return f.OpenFingerprint(ctx, r)
}
