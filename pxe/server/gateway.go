package server

import (
	"context"
	"net/netip"
	"path/filepath"

	"connectrpc.com/connect"

	api "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/rpc"
)

// gateway calls gatewayd; it implements session.Gateway.
type gateway struct {
	client portcullisv1connect.GatewayClient
}

func dialGateway(runDir string) gateway {
	path := filepath.Join(runDir, rpc.GatewaySocket)
	return gateway{portcullisv1connect.NewGatewayClient(rpc.Client(path), rpc.BaseURL, connect.WithGRPC())}
}

// OpenBoot ends all trust of the port and opens the boot services.
func (g gateway) OpenBoot(ctx context.Context, session, mac string, address netip.Addr) error {
	_, err := g.client.OpenBoot(ctx, connect.NewRequest(&api.OpenBootRequest{Session: session, Mac: mac, Address: address.String()}))
	return err
}

// CloseBoot closes the boot services; the agent's channel stays open.
func (g gateway) CloseBoot(ctx context.Context, session string) error {
	_, err := g.client.SetPhase(ctx, connect.NewRequest(&api.SetPhaseRequest{
		Session: session, Phase: api.Phase_PHASE_ATTEST, Reason: "claim",
	}))
	return err
}

// Session returns the session that gatewayd has open.
func (g gateway) Session(ctx context.Context) (string, error) {
	r, err := g.client.GetGatewayStatus(ctx, connect.NewRequest(&api.GetGatewayStatusRequest{}))
	if err != nil {
		return "", err
	}
	return r.Msg.GetSession(), nil
}
