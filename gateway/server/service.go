package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/internal/event"
)

// Service answers the Gateway service of api/portcullis/v1.
type Service struct{ g *Gateway }

var _ portcullisv1connect.GatewayHandler = (*Service)(nil)

// NewService answers for g, which must be running.
func NewService(g *Gateway) *Service { return &Service{g} }

var phases = map[v1.Phase]policy.Phase{
	v1.Phase_PHASE_IDLE: policy.Idle, v1.Phase_PHASE_BOOT: policy.Boot, v1.Phase_PHASE_ATTEST: policy.Attest,
	v1.Phase_PHASE_RUN: policy.Run, v1.Phase_PHASE_QUARANTINE: policy.Quarantine,
}

// call runs f in the owner's goroutine and gives its error a code.
func (s *Service) call(ctx context.Context, f func() error) error {
	var failed error
	if err := s.g.ask(ctx, func() { failed = f() }); err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	switch {
	case failed == nil:
		return nil
	case errors.Is(failed, policy.ErrOtherSession), errors.Is(failed, policy.ErrNotOpen):
		return connect.NewError(connect.CodeFailedPrecondition, failed)
	case errors.Is(failed, policy.ErrBadRequest), errors.Is(failed, policy.ErrGrant):
		return connect.NewError(connect.CodeInvalidArgument, failed)
	case errors.Is(failed, errNoGrant):
		return connect.NewError(connect.CodeNotFound, failed)
	}
	s.g.failed(failed)
	return connect.NewError(connect.CodeUnavailable, failed)
}

var errNoGrant = errors.New("grant-unknown")

// OpenBoot ends all trust of the port and opens the boot phase.
func (s *Service) OpenBoot(ctx context.Context, r *connect.Request[v1.OpenBootRequest]) (*connect.Response[v1.OpenBootResponse], error) {
	err := s.call(ctx, func() error { return s.g.openBoot(r.Msg.Session, r.Msg.Mac, r.Msg.Address) })
	return answer(&v1.OpenBootResponse{}, err)
}

// SetPhase moves the current session.
func (s *Service) SetPhase(ctx context.Context, r *connect.Request[v1.SetPhaseRequest]) (*connect.Response[v1.SetPhaseResponse], error) {
	ttl := milliseconds(r.Msg.TtlMs)
	err := s.call(ctx, func() error { return s.g.setPhase(r.Msg.Session, phases[r.Msg.Phase], ttl, r.Msg.Reason) })
	return answer(&v1.SetPhaseResponse{}, err)
}

// AddGrant opens one target for a while.
func (s *Service) AddGrant(ctx context.Context, r *connect.Request[v1.AddGrantRequest]) (*connect.Response[v1.AddGrantResponse], error) {
	var out *v1.Grant
	err := s.call(ctx, func() error {
		t, err := policy.NewTarget(r.Msg.Protocol, r.Msg.Address, r.Msg.Port)
		if err != nil {
			return err
		}
		x, err := s.g.addGrant(r.Msg.Task, t, milliseconds(r.Msg.DurationMs))
		out = grantMessage(x)
		return err
	})
	return answer(&v1.AddGrantResponse{Grant: out}, err)
}

// ListGrants lists the grants that have not ended.
func (s *Service) ListGrants(ctx context.Context, _ *connect.Request[v1.ListGrantsRequest]) (*connect.Response[v1.ListGrantsResponse], error) {
	out := &v1.ListGrantsResponse{}
	err := s.call(ctx, func() error {
		out.Grants = grantMessages(s.g.policy.Grants)
		return nil
	})
	return answer(out, err)
}

// RevokeGrant ends a grant and its flows at once.
func (s *Service) RevokeGrant(ctx context.Context, r *connect.Request[v1.RevokeGrantRequest]) (*connect.Response[v1.RevokeGrantResponse], error) {
	err := s.call(ctx, func() error {
		ok, err := s.g.revokeGrant(r.Msg.Id)
		if err == nil && !ok {
			return errNoGrant
		}
		return err
	})
	return answer(&v1.RevokeGrantResponse{}, err)
}

// GetGatewayStatus reads policy, counters and bans at one moment.
func (s *Service) GetGatewayStatus(ctx context.Context, _ *connect.Request[v1.GetGatewayStatusRequest]) (*connect.Response[v1.GetGatewayStatusResponse], error) {
	out := &v1.GetGatewayStatusResponse{}
	err := s.call(ctx, func() error { return s.status(out) })
	return answer(out, err)
}

// Wake sends the magic packet. It goes to the known PC only, whoever asks.
func (s *Service) Wake(ctx context.Context, _ *connect.Request[v1.WakeRequest]) (*connect.Response[v1.WakeResponse], error) {
	err := s.call(ctx, func() error {
		if err := s.g.opt.Wire.Wake(); err != nil {
			return err
		}
		s.g.opt.Events.Emit("wake", event.Fields{"mac": s.g.opt.Port.MAC.String(), "carrier": s.g.link})
		return nil
	})
	return answer(&v1.WakeResponse{}, err)
}

func (s *Service) status(out *v1.GetGatewayStatusResponse) error {
	p := s.g.policy
	out.Session, out.Mac, out.Address = p.Session, p.Port.MAC.String(), p.Address.String()
	for wire, ph := range phases {
		if ph == p.Phase {
			out.Phase = wire
		}
	}
	out.Grants = grantMessages(p.Grants)
	out.Carrier, out.CarrierLosses, out.GrantChanges = s.g.link, s.g.losses, s.g.grants
	counters, err := s.g.opt.Kernel.Counters()
	if err != nil {
		return err
	}
	out.Dropped = counters
	for name, n := range counters {
		// The packet that bans is counted by its reason already; the tails of closed flows are no attempts.
		if name != ruleset.BanReason && !ruleset.Silent(name) {
			out.ViolationsTotal += n
		}
	}
	left, err := s.g.opt.Kernel.BanLeft()
	if err != nil {
		return err
	}
	if left > 0 {
		out.Bans = []*v1.Ban{{Mac: p.Port.MAC.String(), NotAfterMs: s.g.opt.Clock.Now().Add(left).UnixMilli()}}
	}
	for _, v := range s.g.ring.Newest() {
		out.Violations = append(out.Violations, &v1.Violation{TimeMs: v.Time.UnixMilli(), Direction: v.Direction, Protocol: v.Protocol,
			Source: v.Source, Destination: v.Destination, Port: uint32(v.Port), Reason: v.Reason})
	}
	return nil
}

func grantMessages(list []policy.Grant) []*v1.Grant {
	var out []*v1.Grant
	for _, x := range list {
		out = append(out, grantMessage(x))
	}
	return out
}

func grantMessage(x policy.Grant) *v1.Grant {
	return &v1.Grant{Id: x.ID, Task: x.Task, Protocol: x.Target.Protocol, Address: strings.TrimPrefix(x.Target.Address.String(), "invalid IP"),
		Port: uint32(x.Target.Port), NotAfterMs: x.NotAfter.UnixMilli()}
}

// milliseconds keeps a huge number from turning negative.
func milliseconds(ms int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Millisecond)
	return time.Duration(min(max(ms, 0), most)) * time.Millisecond
}

func answer[T any](m *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(m), nil
}
