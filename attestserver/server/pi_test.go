package server_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
)

// pxed is a Boot service with the rules that matter here.
type pxed struct {
	portcullisv1connect.UnimplementedBootHandler
	mu       sync.Mutex
	sessions map[string]*portcullisv1.Session
	newest   string
	watchers []chan *portcullisv1.Session
	claims   int
	rests    bool          // somebody answers for it who knows no session
	woken    int           // questions about one session
	away     int           // so many questions find nobody
	loses    bool          // the answer to the next claim
	skew     time.Duration // of its clock
}

func newPxed() *pxed { return &pxed{sessions: make(map[string]*portcullisv1.Session)} }

func (p *pxed) open(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.sessions[p.newest]; old != nil {
		old.State = portcullisv1.SessionState_SESSION_STATE_ENDED
	}
	p.newest = id
	p.sessions[id] = &portcullisv1.Session{Id: id, Mac: "52:54:00:12:34:56", Address: "10.77.0.2",
		State: portcullisv1.SessionState_SESSION_STATE_SERVED, OpenedMs: time.Now().Add(p.skew).UnixMilli()}
	p.tell()
}

// tell is called with mu held.
func (p *pxed) tell() {
	s := p.copy(p.newest)
	for _, w := range p.watchers {
		w <- s
	}
}

func (p *pxed) copy(id string) *portcullisv1.Session {
	s := p.sessions[id]
	if s == nil {
		return nil
	}
	return &portcullisv1.Session{Id: s.Id, Mac: s.Mac, Address: s.Address, State: s.State, OpenedMs: s.OpenedMs,
		ClaimKey: s.ClaimKey, ManifestDigest: s.ManifestDigest, Reason: s.Reason}
}

var errGone = connect.NewError(connect.CodeUnavailable, errors.New("nobody is there"))

// gone is called with mu held.
func (p *pxed) gone() bool {
	p.away = max(p.away-1, -1)
	return p.away >= 0
}

func (p *pxed) Claim(_ context.Context, r *connect.Request[portcullisv1.ClaimRequest]) (*connect.Response[portcullisv1.ClaimResponse], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone() {
		return nil, errGone
	}
	p.claims++
	s := p.sessions[r.Msg.Session]
	switch {
	case s == nil || r.Msg.Session != p.newest:
		return connect.NewResponse(&portcullisv1.ClaimResponse{Reason: "claim-session"}), nil
	case s.State == portcullisv1.SessionState_SESSION_STATE_CLAIMED:
		s.State = portcullisv1.SessionState_SESSION_STATE_VOID
		p.tell()
		return connect.NewResponse(&portcullisv1.ClaimResponse{Reason: "claim-double"}), nil
	case s.State != portcullisv1.SessionState_SESSION_STATE_SERVED:
		return connect.NewResponse(&portcullisv1.ClaimResponse{Reason: "claim-session"}), nil
	}
	s.State, s.ClaimKey, s.ManifestDigest = portcullisv1.SessionState_SESSION_STATE_CLAIMED, r.Msg.PublicKey, r.Msg.ManifestDigest
	p.tell()
	if p.loses {
		p.loses = false
		return nil, errGone
	}
	return connect.NewResponse(&portcullisv1.ClaimResponse{Accepted: true, Session: p.copy(s.Id)}), nil
}

func (p *pxed) GetSession(_ context.Context, r *connect.Request[portcullisv1.GetSessionRequest]) (*connect.Response[portcullisv1.GetSessionResponse], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone() {
		return nil, errGone
	}
	id := r.Msg.Id
	if id == "" {
		id = p.newest
		if p.rests {
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("at rest"))
		}
	} else {
		p.woken++
	}
	s := p.copy(id)
	if s == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such session"))
	}
	return connect.NewResponse(&portcullisv1.GetSessionResponse{Session: s}), nil
}

func (p *pxed) WatchSessions(ctx context.Context, _ *connect.Request[portcullisv1.WatchSessionsRequest], stream *connect.ServerStream[portcullisv1.WatchSessionsResponse]) error {
	news := make(chan *portcullisv1.Session, 100)
	p.mu.Lock()
	first := p.copy(p.newest)
	if p.rests {
		first = nil
	}
	p.watchers = append(p.watchers, news)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.watchers = slices.DeleteFunc(p.watchers, func(c chan *portcullisv1.Session) bool { return c == news })
		p.mu.Unlock()
	}()
	for s := first; ; {
		if err := stream.Send(&portcullisv1.WatchSessionsResponse{Session: s}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case s = <-news:
		}
	}
}

// gatewayd records the phases it is told.
type gatewayd struct {
	portcullisv1connect.UnimplementedGatewayHandler
	mu     sync.Mutex
	phases []*portcullisv1.SetPhaseRequest
	told   chan *portcullisv1.SetPhaseRequest // if set, gets each as well
	status *portcullisv1.GetGatewayStatusResponse
	asked  atomic.Int64 // for it
	fail   connect.Code // 0: works
	heard  []chan struct{}
}

// change changes the status and rings.
func (g *gatewayd) change(f func(*portcullisv1.GetGatewayStatusResponse)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(g.status)
	for _, c := range g.heard {
		c <- struct{}{}
	}
}

func (g *gatewayd) WatchGateway(ctx context.Context, _ *connect.Request[portcullisv1.WatchGatewayRequest], out *connect.ServerStream[portcullisv1.WatchGatewayResponse]) error {
	bell := make(chan struct{}, 100)
	g.mu.Lock()
	g.heard = append(g.heard, bell)
	g.mu.Unlock()
	for n := range uint64(1 << 20) {
		if err := out.Send(&portcullisv1.WatchGatewayResponse{Changes: n}); err != nil {
			return err
		}
		select {
		case <-bell:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func (g *gatewayd) SetPhase(_ context.Context, r *connect.Request[portcullisv1.SetPhaseRequest]) (*connect.Response[portcullisv1.SetPhaseResponse], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != 0 {
		return nil, connect.NewError(g.fail, errors.New("as the test wants"))
	}
	g.phases = append(g.phases, r.Msg)
	if g.told != nil {
		g.told <- r.Msg
	}
	return connect.NewResponse(&portcullisv1.SetPhaseResponse{}), nil
}

// set says what the status is from now on; without it there is no status.
func (g *gatewayd) set(s *portcullisv1.GetGatewayStatusResponse) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status = s
}

func (g *gatewayd) GetGatewayStatus(context.Context, *connect.Request[portcullisv1.GetGatewayStatusRequest]) (*connect.Response[portcullisv1.GetGatewayStatusResponse], error) {
	g.asked.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.status == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("as the test wants"))
	}
	return connect.NewResponse(proto.Clone(g.status).(*portcullisv1.GetGatewayStatusResponse)), nil
}

func (g *gatewayd) RevokeGrant(_ context.Context, r *connect.Request[portcullisv1.RevokeGrantRequest]) (*connect.Response[portcullisv1.RevokeGrantResponse], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.Grants = slices.DeleteFunc(g.status.Grants, func(x *portcullisv1.Grant) bool { return x.Id == r.Msg.Id })
	return connect.NewResponse(&portcullisv1.RevokeGrantResponse{}), nil
}

func (g *gatewayd) grants() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.status.Grants)
}

func (g *gatewayd) breakWith(code connect.Code) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fail = code
}

func (g *gatewayd) last() *portcullisv1.SetPhaseRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.phases) == 0 {
		return nil
	}
	return g.phases[len(g.phases)-1]
}
