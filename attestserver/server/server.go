// Package server is attestd: it accepts the agent's claim, asks, has the
// answers judged, keeps the verdict and tells gatewayd what follows from it.
// One turn at a time owns the verdict (core); whoever has news for it takes a turn.
// cmd/attestd is the only one that may call it.
package server

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/channel"
	"portcullis/attestserver/continuity"
	"portcullis/attestserver/policy"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/schedule"
	"portcullis/internal/clock"
	"portcullis/internal/event"
)

// Options are all that attestd works with. All fields but Name, Warnings, Machine and
// Operators are needed.
type Options struct {
	Name     string             // of the PC in the verdict log; "" where attestd serves one
	Key      ed25519.PrivateKey // gateway identity
	Boot     portcullisv1connect.BootClient
	Gateway  portcullisv1connect.GatewayClient
	Images   *Images
	Refs     References
	Record   *Record
	Events   *event.Writer
	Clock    clock.Alarm
	Random   io.Reader // crypto/rand outside of tests
	Plan     schedule.Plan
	Epochs   *continuity.Keeper
	Rekey    time.Duration  // mean time between two key exchanges with the agent
	Deadline time.Duration  // of one answer; a challenge with every probe gets FullFactor of it
	Posture  string         // of the Pi: "none" where no root of trust is set up
	Policy   *policy.Policy // of the start, see SetPolicy
	// Actions opens what carries out the policy. It gets the server itself to see and
	// reach the PC, and may not call it before Run.
	Actions func(*Server) (Actions, error)
	// Warnings are what there is to say of the Pi beside its posture; they stand in
	// front of a verdict's own. May be empty.
	Warnings []string

	// Of the fingerprint; both may be missing.
	Machine   string              // MAC of the one PC, where a call names none
	Operators []ed25519.PublicKey // who may approve a fingerprint
}

// warnings are those of the Pi and those of a verdict.
func (o *Options) warnings(own []string) []string {
	return append(slices.Clone(o.Warnings), own...)
}

// References is what Expectations get, and the way to take what they cannot
// replace.
type References interface {
	protocol.References
	// PutNew is Put that refuses to replace.
	PutNew(kind, key string, data []byte) error
}

// FullFactor is how much more time than Deadline a challenge has that asks
// everything or takes references: it comes while the PC is still booting.
const FullFactor = 3

// maxShaking bounds how many connections may be between accept and claim.
const maxShaking = 4

// Server is attestd without its process, for one PC; Fleet runs it.
type Server struct {
	o       Options
	gateway *channel.Gateway
	line    *line         // of the fleet
	turns   sync.Mutex    // held in a turn
	core    *core         // nil before it begins and when it has ended
	ready   chan struct{} // closed when it has begun
	broken  chan struct{} // closed by the turn that has found its failure
	done    chan struct{} // closed when it has ended
	status  status
	enforce *enforcer
	actions Actions
	policy  atomic.Pointer[policy.Policy]
	bell    chan struct{}                        // rung where gatewayd is to be asked at once
	heeding atomic.Bool                          // gatewayd tells of changes
	told    atomic.Pointer[portcullisv1.Session] // the newest, as pxed told of it last; nil before
	pace    *rate.Limiter                        // of accepting: bounds what a hostile PC can have logged
	refused *rate.Limiter                        // of events about refused callers
	askPace *rate.Limiter                        // of questions that others bring
}

// New checks the options.
func New(o Options) (*Server, error) {
	if o.Boot == nil || o.Gateway == nil || o.Images == nil || o.Refs == nil || o.Record == nil ||
		o.Clock == nil || o.Random == nil || o.Epochs == nil || o.Rekey <= 0 || o.Deadline <= 0 || o.Plan.Cap() <= 0 || o.Posture == "" ||
		o.Policy == nil || o.Actions == nil {
		return nil, errors.New("attestd: options are incomplete")
	}
	g, err := channel.NewGateway(o.Key)
	if err != nil {
		return nil, fmt.Errorf("attestd: %w", err)
	}
	s := &Server{o: o, gateway: g, line: new(line), ready: make(chan struct{}), broken: make(chan struct{}), done: make(chan struct{}), bell: make(chan struct{}, 1),
		pace: rate.NewLimiter(5, 16), refused: rate.NewLimiter(1, 20),
		askPace: rate.NewLimiter(2, 16)}
	s.policy.Store(o.Policy)
	s.status.o, s.status.s, s.enforce = &s.o, s, newEnforcer(&s.o)
	s.status.set(newCore(s).view())
	if s.actions, err = o.Actions(s); err != nil {
		return nil, fmt.Errorf("attestd: %w", err)
	}
	return s, nil
}

// run serves agents until ctx ends or the record or the actions cannot be kept.
// listen opens the PC's port, and may take as long as it likes. The verdict log's
// growth is signed by who serves all PCs.
func (s *Server) run(ctx context.Context, listen func(context.Context) (net.Listener, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	var broken, stuck error // why no more agents come in, or actions go out; read after group.Wait
	group.Go(func() { s.enforce.run(ctx) })
	group.Go(func() { s.watch(ctx) })
	group.Go(func() { s.heed(ctx) })
	group.Go(func() { s.watchWire(ctx) })
	group.Go(func() {
		stuck = s.actions.Run(ctx)
		cancel()
	})
	group.Go(func() {
		broken = s.open(ctx, listen)
		cancel()
	})
	err := newCore(s).run(ctx)
	cancel()
	close(s.done)
	group.Wait()
	return errors.Join(err, broken, stuck, s.actions.Close())
}

// open opens the port and serves it.
func (s *Server) open(ctx context.Context, listen func(context.Context) (net.Listener, error)) error {
	var l net.Listener
	var err error
	deep.do(func() { l, err = listen(ctx) })
	switch {
	case err != nil && ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	return s.accept(ctx, l)
}

// accept takes connections up to their claim.
func (s *Server) accept(ctx context.Context, l net.Listener) error {
	var group sync.WaitGroup
	defer group.Wait()
	shaking := make(chan struct{}, maxShaking)
	for {
		if err := s.pace.Wait(ctx); err != nil {
			return nil
		}
		raw, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("attestd: accept: %w", err)
		}
		select {
		case shaking <- struct{}{}:
			group.Go(func() {
				defer func() { <-shaking }()
				s.welcome(ctx, raw)
			})
		default:
			s.refusal(raw.RemoteAddr(), reasonBusy, "too many callers without a claim")
			raw.Close()
		}
	}
}

const reasonBusy = "channel-busy"

// refusal reports a caller that got nowhere. A hostile PC can cause as many of
// them as it likes, so they are limited and counted.
func (s *Server) refusal(remote net.Addr, reason, detail string) {
	s.status.refused.Add(1)
	if s.refused.Allow() {
		s.o.Events.Emit("agent.refused", event.Fields{"remote": remote.String(), "reason": reason, "detail": detail,
			"total": s.status.refused.Load()})
	}
}
