package main

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/rpc"
)

// rack answers for attestd with several PCs.
type rack struct {
	portcullisv1connect.UnimplementedAttestHandler
	pcs []*v1.PCStatus
}

func (r *rack) ListPCs(context.Context, *connect.Request[v1.ListPCsRequest]) (*connect.Response[v1.ListPCsResponse], error) {
	return connect.NewResponse(&v1.ListPCsResponse{Pcs: r.pcs}), nil
}

func (r *rack) GetVerdict(_ context.Context, q *connect.Request[v1.GetVerdictRequest]) (*connect.Response[v1.GetVerdictResponse], error) {
	for _, p := range r.pcs {
		if p.Name == q.Msg.Pc {
			return connect.NewResponse(&v1.GetVerdictResponse{Pc: p.Name, State: p.State, Session: p.Session}), nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, nil)
}

func TestStatusOfARack(t *testing.T) {
	dir := t.TempDir()
	r := &rack{pcs: []*v1.PCStatus{
		{Name: "rack-1", State: v1.TrustState_TRUST_STATE_TRUSTED, Tier: "T0", NotAfterMs: time.Now().Add(time.Minute).UnixMilli(), Agent: true},
		{Name: "rack-2", State: v1.TrustState_TRUST_STATE_QUARANTINED, Tier: "T0", Session: "second"},
	}}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewAttestHandler(r))
	l, err := rpc.Listen(filepath.Join(dir, rpc.AttestSocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	go rpc.Serve(t.Context(), l, mux)
	expect := func(code int, want string, args ...string) {
		t.Helper()
		if got, out, errs := run(t, append([]string{"status", "--run-dir", dir}, args...)...); got != code || !strings.Contains(out, want) {
			t.Errorf("%v: exit %d, want %d: %s%s", args, got, code, out, errs)
		}
	}
	expect(1, "rack-2                   quarantined")
	expect(1, `{"pcs":[{"name":"rack-1","state":"trusted"`, "--json")
	expect(0, "PC       trusted", "--pc", "rack-1")
	expect(1, "PC       quarantined", "--pc", "rack-2")
	expect(1, "attestd does not answer", "--pc", "rack-9")
	r.pcs[1].State = v1.TrustState_TRUST_STATE_TRUSTED
	expect(0, "rack-2                   trusted")
}
