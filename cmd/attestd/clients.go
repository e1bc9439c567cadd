package main

import (
	"context"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/rpc"
)

// clients are those of all PCs: a client takes 30 KiB, and each PC has four.
type clients struct {
	boot    portcullisv1connect.BootClient
	gateway portcullisv1connect.GatewayClient
	power   portcullisv1connect.PowerClient
}

func newClients() *clients {
	c := rpc.Lean()
	return &clients{portcullisv1connect.NewBootClient(c, rpc.BaseURL), portcullisv1connect.NewGatewayClient(c, rpc.BaseURL),
		portcullisv1connect.NewPowerClient(c, rpc.BaseURL)}
}

// bootAt is the BootClient of one socket.
type bootAt struct {
	*clients
	path string
}

func (c bootAt) Claim(ctx context.Context, r *connect.Request[v1.ClaimRequest]) (*connect.Response[v1.ClaimResponse], error) {
	return c.boot.Claim(rpc.To(ctx, c.path), r)
}

func (c bootAt) GetSession(ctx context.Context, r *connect.Request[v1.GetSessionRequest]) (*connect.Response[v1.GetSessionResponse], error) {
	return c.boot.GetSession(rpc.To(ctx, c.path), r)
}

func (c bootAt) WatchSessions(ctx context.Context, r *connect.Request[v1.WatchSessionsRequest]) (*connect.ServerStreamForClient[v1.WatchSessionsResponse], error) {
	return c.boot.WatchSessions(rpc.To(ctx, c.path), r)
}

// gatewayAt is the GatewayClient of one socket.
type gatewayAt struct {
	*clients
	path string
}

func (c gatewayAt) OpenBoot(ctx context.Context, r *connect.Request[v1.OpenBootRequest]) (*connect.Response[v1.OpenBootResponse], error) {
	return c.gateway.OpenBoot(rpc.To(ctx, c.path), r)
}

func (c gatewayAt) SetPhase(ctx context.Context, r *connect.Request[v1.SetPhaseRequest]) (*connect.Response[v1.SetPhaseResponse], error) {
	return c.gateway.SetPhase(rpc.To(ctx, c.path), r)
}

func (c gatewayAt) AddGrant(ctx context.Context, r *connect.Request[v1.AddGrantRequest]) (*connect.Response[v1.AddGrantResponse], error) {
	return c.gateway.AddGrant(rpc.To(ctx, c.path), r)
}

func (c gatewayAt) ListGrants(ctx context.Context, r *connect.Request[v1.ListGrantsRequest]) (*connect.Response[v1.ListGrantsResponse], error) {
	return c.gateway.ListGrants(rpc.To(ctx, c.path), r)
}

func (c gatewayAt) RevokeGrant(ctx context.Context, r *connect.Request[v1.RevokeGrantRequest]) (*connect.Response[v1.RevokeGrantResponse], error) {
	return c.gateway.RevokeGrant(rpc.To(ctx, c.path), r)
}

func (c gatewayAt) GetGatewayStatus(ctx context.Context, r *connect.Request[v1.GetGatewayStatusRequest]) (*connect.Response[v1.GetGatewayStatusResponse], error) {
	return c.gateway.GetGatewayStatus(rpc.To(ctx, c.path), r)
}

func (c gatewayAt) WatchGateway(ctx context.Context, r *connect.Request[v1.WatchGatewayRequest]) (*connect.ServerStreamForClient[v1.WatchGatewayResponse], error) {
	return c.gateway.WatchGateway(rpc.To(ctx, c.path), r)
}

func (c gatewayAt) Wake(ctx context.Context, r *connect.Request[v1.WakeRequest]) (*connect.Response[v1.WakeResponse], error) {
	return c.gateway.Wake(rpc.To(ctx, c.path), r)
}

// powerAt is the PowerClient of one socket.
type powerAt struct {
	*clients
	path string
}

func (c powerAt) Press(ctx context.Context, r *connect.Request[v1.PressRequest]) (*connect.Response[v1.PressResponse], error) {
	return c.power.Press(rpc.To(ctx, c.path), r)
}

func (c powerAt) RunHook(ctx context.Context, r *connect.Request[v1.RunHookRequest]) (*connect.Response[v1.RunHookResponse], error) {
	return c.power.RunHook(rpc.To(ctx, c.path), r)
}
