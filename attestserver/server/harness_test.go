package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"portcullis/agent/claim"
	"portcullis/agent/run"
	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/reference"
	"portcullis/attestserver/schedule"
	"portcullis/attestserver/server"
	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

const sid = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
const sid2 = "bbbbbbbbbbbbbbbbbbbbbbbbbb"

// patience bounds every wait of a test; nothing sleeps for luck.
const patience = 20 * time.Second

// pxed is a Boot service with the rules that matter here.
type pxed struct {
	portcullisv1connect.UnimplementedBootHandler
	mu       sync.Mutex
	sessions map[string]*portcullisv1.Session
	newest   string
	watchers []chan *portcullisv1.Session
	claims   int
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

func (p *pxed) Claim(_ context.Context, r *connect.Request[portcullisv1.ClaimRequest]) (*connect.Response[portcullisv1.ClaimResponse], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claims++
	s := p.sessions[r.Msg.Session]
	switch {
	case s == nil || r.Msg.Session != p.newest:
		return connect.NewResponse(&portcullisv1.ClaimResponse{Reason: "claim-session"}), nil
	case s.State == portcullisv1.SessionState_SESSION_STATE_CLAIMED:
		s.State = portcullisv1.SessionState_SESSION_STATE_VOID
		p.tell()
		return connect.NewResponse(&portcullisv1.ClaimResponse{Reason: "claim-second"}), nil
	case s.State != portcullisv1.SessionState_SESSION_STATE_SERVED:
		return connect.NewResponse(&portcullisv1.ClaimResponse{Reason: "claim-session"}), nil
	}
	s.State, s.ClaimKey, s.ManifestDigest = portcullisv1.SessionState_SESSION_STATE_CLAIMED, r.Msg.PublicKey, r.Msg.ManifestDigest
	p.tell()
	return connect.NewResponse(&portcullisv1.ClaimResponse{Accepted: true, Session: p.copy(s.Id)}), nil
}

func (p *pxed) GetSession(_ context.Context, r *connect.Request[portcullisv1.GetSessionRequest]) (*connect.Response[portcullisv1.GetSessionResponse], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.copy(r.Msg.Id)
	if s == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such session"))
	}
	return connect.NewResponse(&portcullisv1.GetSessionResponse{Session: s}), nil
}

func (p *pxed) WatchSessions(ctx context.Context, _ *connect.Request[portcullisv1.WatchSessionsRequest], stream *connect.ServerStream[portcullisv1.WatchSessionsResponse]) error {
	news := make(chan *portcullisv1.Session, 100)
	p.mu.Lock()
	first := p.copy(p.newest)
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
	fail   connect.Code // 0: works
}

func (g *gatewayd) SetPhase(_ context.Context, r *connect.Request[portcullisv1.SetPhaseRequest]) (*connect.Response[portcullisv1.SetPhaseResponse], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != 0 {
		return nil, connect.NewError(g.fail, errors.New("as the test wants"))
	}
	g.phases = append(g.phases, r.Msg)
	return connect.NewResponse(&portcullisv1.SetPhaseResponse{}), nil
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

// machine is the PC: what its probes find. Expectations want "good".
type machine struct {
	mu    sync.Mutex
	facts map[string]string
	delay time.Duration
	class string
}

func (m *machine) set(probe, fact string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts[probe] = fact
}

func (m *machine) slow(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = d
}

func (m *machine) get(probe string) (string, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f, ok := m.facts[probe]; ok {
		return f, m.delay
	}
	return "good", m.delay
}

// stubProbe hashes a fact of the machine; "hw" names the class, "ktext" sends
// its fact whole when it is asked with parameters "enrol".
type stubProbe struct {
	name string
	m    *machine
}

func (p stubProbe) Name() string { return p.name }

func (p stubProbe) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	fact, delay := p.m.get(p.name)
	select {
	case <-ctx.Done():
	case <-time.After(delay):
	}
	switch {
	case fact == "error":
		return protocol.Output{}, errors.New("cannot read \xff")
	case fact == "panic":
		panic("as the test wants")
	}
	out := protocol.Output{Digest: key.Digest(p.name, params, []byte(fact))}
	switch {
	case p.name == "hw":
		p.m.mu.Lock()
		out.Data = []byte(p.m.class)
		p.m.mu.Unlock()
	case p.name == "ktext" && string(params) == "enrol":
		out.Data = bytes.Repeat([]byte(fact), 1<<20)
	}
	return out, nil
}

// stubExpect is its twin.
type stubExpect struct{ name string }

func (e stubExpect) Name() string { return e.name }
func (e stubExpect) Params(r io.Reader, _ *protocol.ImageState) ([]byte, error) {
	b := make([]byte, 8)
	_, err := io.ReadFull(r, b)
	return b, err
}
func (e stubExpect) Judge(in protocol.JudgeInput) []protocol.Finding {
	if !protocol.SameDigest(in.Output.Digest, in.Key.Digest(e.name, in.Params, []byte("good"))) {
		return []protocol.Finding{{Probe: e.name, Reason: e.name + "-wrong", Detail: "not good", Class: protocol.Fatal}}
	}
	return nil
}

type stubClass struct{ stubExpect }

func (stubClass) CPUClass(out protocol.Output) (string, error) {
	if len(out.Data) == 0 {
		return "", errors.New("no class")
	}
	return string(out.Data), nil
}

type stubEnrol struct{ stubExpect }

func (e stubEnrol) Enrolled(st *protocol.ImageState, refs protocol.References) (bool, error) {
	r, err := refs.Open(e.name, protocol.ReferenceKey(st))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		r.Close()
	}
	return err == nil, err
}
func (e stubEnrol) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error) {
	return []byte("enrol"), nil
}
func (e stubEnrol) Enrol(in protocol.JudgeInput) []protocol.Finding {
	if err := in.Refs.Put(e.name, protocol.ReferenceKey(in.State), in.Output.Data); err != nil {
		return []protocol.Finding{{Probe: e.name, Reason: "enrol", Detail: err.Error(), Class: protocol.Soft}}
	}
	return nil
}

// lab is a Pi and a PC in one process.
type lab struct {
	t        testing.TB
	dir      string
	image    *manifesttest.Image
	digest   [32]byte
	pxed     *pxed
	gatewayd *gatewayd
	machine  *machine
	names    []string
	enrol    bool
	mean     time.Duration
	min      time.Duration
	deadline time.Duration

	address string
	events  *events
	attest  portcullisv1connect.AttestClient
	stop    func()
}

func newLab(t testing.TB) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "pc") // short: the path of a unix socket has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{t: t, dir: dir, pxed: newPxed(), gatewayd: new(gatewayd),
		machine: &machine{facts: make(map[string]string), class: "x86.6.6.3"},
		names:   []string{"boot", "procs", "hw", "ktext", "net"}, mean: 100 * time.Millisecond, min: 20 * time.Millisecond, deadline: 2 * time.Second}
	l.image = manifesttest.New(t, func(m *manifest.Manifest) {
		m.NotBefore, m.NotAfter = time.Now().Add(-time.Hour).UTC().Truncate(time.Second), time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	})
	envelope, err := os.ReadFile(filepath.Join(l.image.Dir, manifest.Envelope))
	if err != nil {
		t.Fatal(err)
	}
	v, err := manifest.Open(envelope, l.image.Trust, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	l.digest = v.Digest
	bootPath, bootHandler := portcullisv1connect.NewBootHandler(l.pxed)
	l.serve(rpc.BootSocket, bootPath, bootHandler)
	gatePath, gateHandler := portcullisv1connect.NewGatewayHandler(l.gatewayd)
	l.serve(rpc.GatewaySocket, gatePath, gateHandler)
	return l
}

func (l *lab) serve(socket, path string, h http.Handler) {
	mux := http.NewServeMux()
	mux.Handle(path, h)
	ln, err := rpc.Listen(filepath.Join(l.dir, socket), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.t.Cleanup(cancel)
	go rpc.Serve(ctx, ln, mux)
}

func (l *lab) client(socket string) *http.Client { return rpc.Client(filepath.Join(l.dir, socket)) }

// start starts attestd, again with the same state after a stop.
func (l *lab) start() {
	l.t.Helper()
	refs, err := reference.Open(filepath.Join(l.dir, "references"))
	if err != nil {
		l.t.Fatal(err)
	}
	record, err := server.OpenRecord(filepath.Join(l.dir, "verdicts.journal"))
	if err != nil {
		l.t.Fatal(err)
	}
	images, err := server.NewImages(l.image.Dir, []string{base64.StdEncoding.EncodeToString(l.image.Trust.ReleaseKeys[0])}, 1, 0,
		func(*protocol.Image) ([]protocol.Expectation, error) {
			var all []protocol.Expectation
			for _, n := range l.names {
				switch {
				case n == "hw":
					all = append(all, stubClass{stubExpect{n}})
				case n == "ktext" && l.enrol:
					all = append(all, stubEnrol{stubExpect{n}})
				default:
					all = append(all, stubExpect{n})
				}
			}
			return all, nil
		})
	if err != nil {
		l.t.Fatal(err)
	}
	plan, err := schedule.NewPlan(l.mean, l.min)
	if err != nil {
		l.t.Fatal(err)
	}
	l.events = newEvents()
	s, err := server.New(server.Options{
		Key:     l.image.GatewayKey,
		Boot:    portcullisv1connect.NewBootClient(l.client(rpc.BootSocket), rpc.BaseURL),
		Gateway: portcullisv1connect.NewGatewayClient(l.client(rpc.GatewaySocket), rpc.BaseURL),
		Images:  images, Refs: refs, Record: record, Events: event.NewJSON(l.events, "attestd", time.Now),
		Clock: clock.Real{}, Random: rand.Reader, Plan: plan, Deadline: l.deadline, Posture: "none",
	})
	if err != nil {
		l.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, ln) }()
	socket, err := rpc.Listen(filepath.Join(l.dir, rpc.AttestSocket), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	go rpc.Serve(ctx, socket, s.Handler())
	l.attest = portcullisv1connect.NewAttestClient(l.client(rpc.AttestSocket), rpc.BaseURL)
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			l.t.Errorf("attestd ended: %v", err)
		}
		record.Close()
	})
	l.t.Cleanup(l.stop)
}

func (l *lab) facts(session string) claim.Facts {
	root, err := hex.DecodeString(l.image.Manifest.Verity.RootHash)
	if err != nil {
		l.t.Fatal(err)
	}
	return claim.Facts{Session: session, ManifestDigest: l.digest, RootHash: [32]byte(root),
		Gateway: l.image.GatewayKey.Public().(ed25519.PublicKey)}
}

func newKey(t testing.TB) *claim.Key {
	t.Helper()
	k, err := claim.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// agent starts an honest agent on the machine, at the current address of attestd.
func (l *lab) agent(session string, key *claim.Key) (stop func()) {
	var probes []protocol.Probe
	for _, n := range l.names {
		probes = append(probes, stubProbe{n, l.machine})
	}
	a := &run.Agent{Address: l.address, Facts: l.facts(session), Key: key, Probes: probes, Log: func(s string) { l.t.Log("agent:", s) }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { a.Run(ctx); close(done) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	l.t.Cleanup(stop)
	return stop
}

func (l *lab) verdict() *portcullisv1.GetVerdictResponse {
	l.t.Helper()
	r, err := l.attest.GetVerdict(context.Background(), connect.NewRequest(&portcullisv1.GetVerdictRequest{}))
	if err != nil {
		l.t.Fatal(err)
	}
	return r.Msg
}

// events collects what attestd reports.
type events struct {
	mu   sync.Mutex
	all  []map[string]any
	more chan struct{}
}

func newEvents() *events { return &events{more: make(chan struct{})} }

func (e *events) Write(b []byte) (int, error) {
	s := bufio.NewScanner(bytes.NewReader(b))
	e.mu.Lock()
	defer e.mu.Unlock()
	for s.Scan() {
		var m map[string]any
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			return 0, err
		}
		e.all = append(e.all, m)
	}
	close(e.more)
	e.more = make(chan struct{})
	return len(b), nil
}

// find returns the first event after position from that has all the fields.
func (e *events) find(from int, name string, fields map[string]any) (int, map[string]any, chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
next:
	for i := from; i < len(e.all); i++ {
		if e.all[i]["event"] != name {
			continue
		}
		for k, v := range fields {
			if e.all[i][k] != v {
				continue next
			}
		}
		return i, e.all[i], nil
	}
	return 0, nil, e.more
}

func (e *events) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.all)
}

// await waits for an event after position from and returns its position.
func (l *lab) await(from int, name string, fields map[string]any) (int, map[string]any) {
	l.t.Helper()
	limit := time.After(patience)
	for {
		i, m, more := l.events.find(from, name, fields)
		if m != nil {
			return i, m
		}
		select {
		case <-more:
		case <-limit:
			l.events.mu.Lock()
			defer l.events.mu.Unlock()
			for _, e := range l.events.all[from:] {
				l.t.Log(e)
			}
			l.t.Fatalf("no event %s %v", name, fields)
		}
	}
}

func (l *lab) awaitState(from int, state string) (int, map[string]any) {
	l.t.Helper()
	return l.await(from, "verdict", map[string]any{"state": state})
}
