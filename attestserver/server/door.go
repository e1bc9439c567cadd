package server

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
)

// door is where requests come in: it hands each to the PC that it names.
type door struct{ f *Fleet }

var _ portcullisv1connect.AttestHandler = door{}

// Handler serves the Attest service, and POST /attest.
func (f *Fleet) Handler() http.Handler {
	d := door{f}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewAttestHandler(d))
	mux.Handle(portcullisv1connect.NewFingerprintHandler(d))
	mux.HandleFunc("POST /attest", d.postAttest)
	return mux
}

// ListPCs tells of all PCs.
func (d door) ListPCs(context.Context, *connect.Request[portcullisv1.ListPCsRequest]) (*connect.Response[portcullisv1.ListPCsResponse], error) {
	r := new(portcullisv1.ListPCsResponse)
	for _, s := range d.f.pcs {
		w := s.status.current()
		p := &portcullisv1.PCStatus{Name: s.o.Name, Session: w.verdict.Session, State: apiState(w.verdict.State), Tier: string(w.verdict.Tier),
			Challenges: w.verdict.Challenges, Failures: w.verdict.Failures, Agent: w.agent}
		if !w.verdict.NotAfter.IsZero() {
			p.NotAfterMs = w.verdict.NotAfter.UnixMilli()
		}
		r.Pcs = append(r.Pcs, p)
	}
	return connect.NewResponse(r), nil
}

// GetVerdict returns what is believed now.
func (d door) GetVerdict(_ context.Context, r *connect.Request[portcullisv1.GetVerdictRequest]) (*connect.Response[portcullisv1.GetVerdictResponse], error) {
	s, err := d.pick(r.Msg.Pc)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.getVerdict()), nil
}

// GetResult signs what is believed now.
func (d door) GetResult(_ context.Context, r *connect.Request[portcullisv1.GetResultRequest]) (*connect.Response[portcullisv1.GetResultResponse], error) {
	s, err := d.pick(r.Msg.Pc)
	if err != nil {
		return nil, err
	}
	result, err := s.getResult()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(result), nil
}

// Ask has the PC challenged for the caller.
func (d door) Ask(ctx context.Context, r *connect.Request[portcullisv1.AskRequest]) (*connect.Response[portcullisv1.AskResponse], error) {
	s, err := d.pick(r.Msg.Pc)
	if err != nil {
		return nil, err
	}
	answer, err := s.ask(ctx, r.Msg)
	if err != nil {
		return nil, connect.NewError(askCode(err), err)
	}
	return connect.NewResponse(answer), nil
}

func (d door) pick(pc string) (*status, error) {
	s, err := d.f.pick(pc)
	if err != nil {
		return nil, connect.NewError(askCode(err), err)
	}
	return s, nil
}
