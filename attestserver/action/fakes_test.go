package action

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/policy"
	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
	"portcullis/internal/journal"
)

const one, two = "aaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbb"

// hurried is a clock on which every wait is over at once, and took its time.
type hurried struct {
	mu  sync.Mutex
	now time.Time
}

func (c *hurried) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *hurried) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	ch := make(chan time.Time, 1)
	ch <- c.now
	return ch
}

// rig is a PC with everything around it; what it does is a list of words.
type rig struct {
	portcullisv1connect.GatewayClient
	clock *hurried

	mu      sync.Mutex
	did     []string
	session string
	agent   bool
	carrier bool
	losses  uint64
	grants  []string
	broken  int               // calls to gatewayd that fail before one works
	on      map[string]func() // what becomes of the PC
	refuse  map[string]error
	hang    chan struct{} // Down waits for it, if set
}

func newRig() *rig {
	return &rig{clock: &hurried{now: time.Unix(1_800_000_000, 0)}, session: one, agent: true, carrier: true, on: map[string]func(){}, refuse: map[string]error{}}
}

func (r *rig) do(word string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.did = append(r.did, word)
	if f := r.on[word]; f != nil {
		f()
	}
	return r.refuse[word]
}

func (r *rig) words() []string { r.mu.Lock(); defer r.mu.Unlock(); return slices.Clone(r.did) }

func (r *rig) Session() string { r.mu.Lock(); defer r.mu.Unlock(); return r.session }
func (r *rig) Agent() bool     { r.mu.Lock(); defer r.mu.Unlock(); return r.agent }
func (r *rig) Down(ctx context.Context, _ [16]byte, _ string, off bool) error {
	word := "agent-reboot"
	if off {
		word = "agent-off"
	}
	err := r.do(word)
	if r.hang != nil {
		select {
		case <-r.hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (r *rig) fails() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken > 0 {
		r.broken--
		return connect.NewError(connect.CodeUnavailable, errors.New("gatewayd is away"))
	}
	return nil
}

func (r *rig) GetGatewayStatus(context.Context, *connect.Request[v1.GetGatewayStatusRequest]) (*connect.Response[v1.GetGatewayStatusResponse], error) {
	if err := r.fails(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &v1.GetGatewayStatusResponse{Session: r.session, Carrier: r.carrier, CarrierLosses: r.losses}
	for _, g := range r.grants {
		out.Grants = append(out.Grants, &v1.Grant{Id: g})
	}
	return connect.NewResponse(out), nil
}

func (r *rig) RevokeGrant(_ context.Context, q *connect.Request[v1.RevokeGrantRequest]) (*connect.Response[v1.RevokeGrantResponse], error) {
	r.mu.Lock()
	r.grants = slices.DeleteFunc(r.grants, func(g string) bool { return g == q.Msg.Id })
	r.mu.Unlock()
	return connect.NewResponse(&v1.RevokeGrantResponse{}), r.do("revoke " + q.Msg.Id)
}

func (r *rig) SetPhase(_ context.Context, q *connect.Request[v1.SetPhaseRequest]) (*connect.Response[v1.SetPhaseResponse], error) {
	if err := r.fails(); err != nil {
		return nil, err
	}
	if q.Msg.Session != r.Session() {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("session-not-current"))
	}
	return connect.NewResponse(&v1.SetPhaseResponse{}), r.do(strings.ToLower(q.Msg.Phase.String()))
}

func (r *rig) Wake(context.Context, *connect.Request[v1.WakeRequest]) (*connect.Response[v1.WakeResponse], error) {
	return connect.NewResponse(&v1.WakeResponse{}), r.do("wake")
}

func (r *rig) Press(_ context.Context, q *connect.Request[v1.PressRequest]) (*connect.Response[v1.PressResponse], error) {
	return connect.NewResponse(&v1.PressResponse{}), r.do(strings.ToLower(q.Msg.Button.String()))
}

func (r *rig) RunHook(_ context.Context, q *connect.Request[v1.RunHookRequest]) (*connect.Response[v1.RunHookResponse], error) {
	return connect.NewResponse(&v1.RunHookResponse{}), r.do(strings.ToLower(q.Msg.Verb.String()))
}

// engine is one life of an engine.
type engine struct {
	*Engine
	t      *testing.T
	path   string
	events *eventtest.Buffer
	stop   func()
}

func (r *rig) options(path string) Options {
	return Options{Journal: path, PC: r, Gateway: r, Relay: r, Hook: r, Clock: r.clock, Random: rand.Reader,
		Ladder: Ladder{Rungs: Rungs, Within: time.Minute, OffTime: 10 * time.Second}}
}

func (r *rig) engine(t *testing.T, path string, change func(*Options)) *engine {
	t.Helper()
	e := &engine{t: t, path: path, events: &eventtest.Buffer{}}
	o := r.options(path)
	o.Events = event.NewJSON(e.events, "attestd", r.clock.Now)
	if change != nil {
		change(&o)
	}
	var err error
	if e.Engine, err = Open(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		e.Close()
	})
	t.Cleanup(e.stop)
	return e
}

func newEngine(t *testing.T, r *rig) *engine {
	return r.engine(t, filepath.Join(t.TempDir(), "actions.journal"), nil)
}

// fire posts a rule with the actions.
func (e *engine) fire(actions ...policy.Action) {
	e.t.Helper()
	e.firing(policy.Rule{Name: "r", Then: actions})
}

func (e *engine) firing(rule policy.Rule) {
	e.t.Helper()
	c := policy.Claims{State: "suspect", Session: one, Tier: "T0", Posture: "none", Findings: []policy.Finding{{Probe: "ktext", Reason: "ktext-page", Class: "fatal"}}}
	if err := e.Post(policy.Firing{Rule: &rule, Claims: c, Time: e.o.Clock.Now()}); err != nil {
		e.t.Fatal(err)
	}
}

func records(t testing.TB, path string) (out []Record) {
	t.Helper()
	_, err := journal.ReadFile(path, func(rec journal.Record) error {
		r, err := ParseRecord(rec.Payload)
		out = append(out, r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ends waits until n actions have ended and returns their records.
func (e *engine) ends(n int) []Record {
	e.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		var out []Record
		for _, r := range records(e.t, e.path) {
			if r.State == stateEnded {
				out = append(out, r)
			}
		}
		if len(out) >= n {
			return out
		}
		if time.Now().After(end) {
			e.t.Fatalf("%d of %d actions ended: %+v", len(out), n, records(e.t, e.path))
		}
	}
}

// told finds an event.
func (e *engine) told(name string) map[string]any {
	for _, line := range strings.Split(e.events.String(), "\n") {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["event"] == name {
			return m
		}
	}
	e.t.Errorf("no event %s in\n%s", name, e.events.String())
	return nil
}
