package scenario

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/rpc"
)

// Trusted is the state that allows grants.
const Trusted = v1.TrustState_TRUST_STATE_TRUSTED

// callLimit bounds one question to a service.
const callLimit = 5 * time.Second

func (s *Stage) attest() portcullisv1connect.AttestClient {
	return portcullisv1connect.NewAttestClient(s.Client(rpc.AttestSocket), rpc.BaseURL)
}

func (s *Stage) boot() portcullisv1connect.BootClient {
	return portcullisv1connect.NewBootClient(s.Client(rpc.BootSocket), rpc.BaseURL)
}

func (s *Stage) gateway() portcullisv1connect.GatewayClient {
	return portcullisv1connect.NewGatewayClient(s.Client(rpc.GatewaySocket), rpc.BaseURL)
}

// Verdict asks attestd what it believes of the PC.
func (s *Stage) Verdict(ctx context.Context) (*v1.GetVerdictResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := s.attest().GetVerdict(ctx, connect.NewRequest(&v1.GetVerdictRequest{}))
	if err != nil {
		return nil, fmt.Errorf("asking attestd: %w", err)
	}
	return r.Msg, nil
}

// Gateway asks gatewayd for its state.
func (s *Stage) Gateway(ctx context.Context) (*v1.GetGatewayStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := s.gateway().GetGatewayStatus(ctx, connect.NewRequest(&v1.GetGatewayStatusRequest{}))
	if err != nil {
		return nil, fmt.Errorf("asking gatewayd: %w", err)
	}
	return r.Msg, nil
}

// Session asks pxed for the newest boot session.
func (s *Stage) Session(ctx context.Context) (*v1.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := s.boot().GetSession(ctx, connect.NewRequest(&v1.GetSessionRequest{}))
	if err != nil {
		return nil, fmt.Errorf("asking pxed: %w", err)
	}
	return r.Msg.Session, nil
}

// until calls f every 100 ms until it returns true or an error, or limit passes.
// It is for what a service tells only when asked; events are waited for.
func until(ctx context.Context, limit time.Duration, what string, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		done, err := f()
		if err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not seen within %s", what, limit)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
