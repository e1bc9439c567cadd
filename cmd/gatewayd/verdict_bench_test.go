package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"portcullis/agent/claim"
	agentrun "portcullis/agent/run"
	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/continuity"
	"portcullis/attestserver/policy"
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

// judgement is attestd before the real gatewayd, with one PC that answers over its
// channel, and packets of that PC that a grant lets through.
type judgement struct {
	*rig
	image    *manifesttest.Image
	session  atomic.Pointer[v1.Session]
	news     chan *v1.Session
	tampered atomic.Bool
	sending  atomic.Bool // only while a grant is in force: who sends forbidden packets is banned

	mu    sync.Mutex
	found []time.Time // fatal findings of the session
	state string
	told  time.Time // when gatewayd answered that the quarantine is in force
}

// watched is the real gatewayd; it notes when it answered that a quarantine is in force.
type watched struct {
	portcullisv1connect.GatewayClient
	j *judgement
}

func (w watched) SetPhase(ctx context.Context, r *connect.Request[v1.SetPhaseRequest]) (*connect.Response[v1.SetPhaseResponse], error) {
	answer, err := w.GatewayClient.SetPhase(ctx, r)
	if err == nil && r.Msg.Phase == v1.Phase_PHASE_QUARANTINE {
		w.j.mu.Lock()
		w.j.told = time.Now()
		w.j.mu.Unlock()
	}
	return answer, err
}

func (j *judgement) answered() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.told.IsZero()
}

func (j *judgement) Name() string { return "procs" }

func (j *judgement) Run(_ context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	fact := []byte("good")
	if j.tampered.Load() {
		fact = []byte("bad")
	}
	return protocol.Output{Digest: key.Digest("procs", params, fact)}, nil
}

// expectation is the probe's twin.
type expectation struct{}

func (expectation) Name() string { return "procs" }
func (expectation) Params(r io.Reader, _ *protocol.ImageState) ([]byte, error) {
	return protocol.None, nil
}
func (expectation) Judge(in protocol.JudgeInput) []protocol.Finding {
	if protocol.SameDigest(in.Output.Digest, in.Key.Digest("procs", in.Params, []byte("good"))) {
		return nil
	}
	return []protocol.Finding{{Probe: "procs", Reason: "procs-wrong", Class: protocol.Fatal}}
}

// pxed is the Boot service of one session at a time.
type pxed struct {
	portcullisv1connect.UnimplementedBootHandler
	j *judgement
}

func (p pxed) WatchSessions(ctx context.Context, _ *connect.Request[v1.WatchSessionsRequest], out *connect.ServerStream[v1.WatchSessionsResponse]) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-p.j.news:
			if err := out.Send(&v1.WatchSessionsResponse{Session: s}); err != nil {
				return err
			}
		}
	}
}

func (p pxed) GetSession(context.Context, *connect.Request[v1.GetSessionRequest]) (*connect.Response[v1.GetSessionResponse], error) {
	return connect.NewResponse(&v1.GetSessionResponse{Session: p.j.session.Load()}), nil
}

func (p pxed) Claim(_ context.Context, r *connect.Request[v1.ClaimRequest]) (*connect.Response[v1.ClaimResponse], error) {
	s := p.j.session.Load()
	claimed := &v1.Session{Id: s.Id, Mac: s.Mac, Address: s.Address, State: v1.SessionState_SESSION_STATE_CLAIMED,
		ClaimKey: r.Msg.PublicKey, ManifestDigest: r.Msg.ManifestDigest}
	p.j.session.Store(claimed)
	return connect.NewResponse(&v1.ClaimResponse{Accepted: true, Session: claimed}), nil
}

// Write takes attestd's events: when a finding was judged, and what is believed.
func (j *judgement) Write(b []byte) (int, error) {
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case bytes.Contains(b, []byte(`"event":"finding"`)) && bytes.Contains(b, []byte(`"class":"fatal"`)): // a slow answer is one too
		j.found = append(j.found, now)
	case bytes.Contains(b, []byte(`"event":"verdict"`)):
		for _, s := range []string{"unknown", "trusted", "suspect", "quarantined"} {
			if bytes.Contains(b, []byte(`"state":"`+s+`"`)) {
				j.state = s
			}
		}
	}
	return len(b), nil
}

func (j *judgement) is(state string) func() bool {
	return func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.state == state
	}
}

type noActions struct{}

func (noActions) Post(policy.Firing) error      { return nil }
func (noActions) Fired(string) time.Time        { return time.Time{} }
func (noActions) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (noActions) Close() error                  { return nil }

// attestd runs until the test ends and returns its address.
func (j *judgement) attestd(ctx context.Context) string {
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewBootHandler(pxed{j: j}))
	socket := filepath.Join(j.dir, "pxed.sock")
	served, err := rpc.Listen(socket, nil)
	j.must(err)
	go rpc.Serve(ctx, served, mux)
	record, err := server.OpenRecord(filepath.Join(j.dir, "verdicts"), j.image.GatewayKey)
	j.must(err)
	refs, err := reference.Open(filepath.Join(j.dir, "references"))
	j.must(err)
	epochs, err := continuity.Open(filepath.Join(j.dir, "epoch.json"))
	j.must(err)
	plan, err := schedule.NewPlan(200*time.Millisecond, 50*time.Millisecond)
	j.must(err)
	images, err := server.NewImages(j.image.Dir, []string{base64.StdEncoding.EncodeToString(j.image.Trust.ReleaseKeys[0])}, 1, 0,
		func(*protocol.Image) ([]protocol.Expectation, error) {
			return []protocol.Expectation{expectation{}}, nil
		})
	j.must(err)
	s, err := server.New(server.Options{Key: j.image.GatewayKey, Boot: portcullisv1connect.NewBootClient(rpc.Client(socket), rpc.BaseURL),
		Gateway: watched{j.client, j}, Images: images, Refs: refs, Record: record, Events: event.NewJSON(j, "attestd", time.Now), Clock: clock.Real{},
		Random: rand.Reader, Plan: plan, Deadline: 10 * time.Second, Posture: "none", Epochs: epochs, Rekey: time.Hour, Policy: policy.Default(),
		Actions: func(*server.Server) (server.Actions, error) { return noActions{}, nil }})
	j.must(err)
	fleet, err := server.NewFleet([]*server.Server{s})
	j.must(err)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	j.must(err)
	go fleet.Run(ctx, func(context.Context, string) (net.Listener, error) { return l, nil })
	return l.Addr().String()
}

// BenchmarkQuarantineAfterVerdict is the whole way in one run: from the moment when
// attestd has judged the answer that quarantines to the moment when the kernel shows that the
// run is over (gatewayd's event phase has it), to gatewayd's answer, which attestd needs for
// nothing but its own event, to the disk (phase.stored), and to the last packet of a granted
// flow that was read. The PC sends one each 0.4 ms, on a busy machine fewer. One
// iteration is a whole boot session.
func BenchmarkQuarantineAfterVerdict(b *testing.B) {
	j := &judgement{rig: newRig(b), news: make(chan *v1.Session, 4)}
	j.banWindow = "1s"
	j.image = manifesttest.New(b, func(m *manifest.Manifest) {
		m.NotBefore, m.NotAfter = time.Now().Add(-time.Hour).UTC().Truncate(time.Second), time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	})
	j.start()
	j.realtime()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	address := j.attestd(ctx)
	last := j.arrivals(ctx)
	took := map[string][]float64{}
	for i := 0; b.Loop(); i++ {
		for what, ms := range j.once(ctx, sessionNumber(i), address, last) {
			took[what] = append(took[what], ms)
		}
	}
	for what, all := range took {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], what+"-ms-median")
		b.ReportMetric(all[len(all)*9/10], what+"-ms-p90")
		b.ReportMetric(all[len(all)-1], what+"-ms-max")
	}
	b.ReportMetric(0, "ns/op") // of a whole session: says nothing
}

// realtime gives gatewayd the scheduling that its unit gives it.
func (j *judgement) realtime() {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", j.child.Process.Pid))
	j.must(err)
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		j.must(err)
		j.must(unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0))
	}
}

// arrivals has the PC send, and notes when the last packet came through.
func (j *judgement) arrivals(ctx context.Context) *atomic.Int64 {
	in, err := j.up.ListenPacket("udp4", upIP+":9")
	j.must(err)
	j.t.Cleanup(func() { in.Close() })
	last := new(atomic.Int64)
	go func() {
		b := make([]byte, 64)
		for {
			if _, _, err := in.ReadFrom(b); err != nil {
				return
			}
			last.Store(time.Now().UnixNano())
		}
	}()
	out, err := j.pc.Dial(ctx, "udp4", upIP+":9")
	j.must(err)
	go func() {
		defer out.Close()
		for tick := time.NewTicker(400 * time.Microsecond); ctx.Err() == nil; <-tick.C {
			if j.sending.Load() {
				_, _ = out.Write([]byte("x")) // an error is what a refused packet gives
			}
		}
	}()
	return last
}

// once is one boot session; it returns milliseconds from the verdict.
func (j *judgement) once(ctx context.Context, session, address string, last *atomic.Int64) map[string]float64 {
	ctx, cancel := context.WithCancel(ctx)
	j.tampered.Store(false)
	j.mu.Lock()
	j.found, j.state, j.told = nil, "", time.Time{}
	j.mu.Unlock()
	j.openBoot(session)
	j.must(j.phase(session, v1.Phase_PHASE_ATTEST, 0))
	s := &v1.Session{Id: session, Mac: pcMAC, Address: pcIP, State: v1.SessionState_SESSION_STATE_SERVED}
	j.session.Store(s)
	j.news <- s
	envelope, err := os.ReadFile(filepath.Join(j.image.Dir, manifest.Envelope))
	j.must(err)
	m, err := manifest.Open(envelope, j.image.Trust, time.Now(), 0)
	j.must(err)
	root, err := hex.DecodeString(j.image.Manifest.Verity.RootHash)
	j.must(err)
	key, err := claim.NewKey()
	j.must(err)
	a := &agentrun.Agent{Address: address, Key: key, Probes: []protocol.Probe{j}, Down: func(bool) error { return nil }, Log: func(string) {},
		Facts: claim.Facts{Session: session, ManifestDigest: m.Digest, RootHash: [32]byte(root), Gateway: j.image.GatewayKey.Public().(ed25519.PublicKey)}}
	ended := make(chan struct{})
	go func() { a.Run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	j.eventually("trusted", j.is("trusted"))
	j.grant("udp", addrPort(upIP+":9"), time.Minute)
	j.routing()
	before := last.Load()
	j.sending.Store(true)
	j.eventually("packets come through", func() bool { return last.Load() > before+int64(20*time.Millisecond) })
	j.tampered.Store(true)
	j.eventually("quarantined", j.is("quarantined"))
	j.eventually("answered", j.answered)
	j.eventually("nothing comes through", func() bool { return time.Since(time.Unix(0, last.Load())) > 100*time.Millisecond })
	j.sending.Store(false)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.found) < 2 {
		j.t.Fatalf("%d findings", len(j.found))
	}
	verdict := j.found[1]
	ms := func(t time.Time) float64 { return float64(t.Sub(verdict).Microseconds()) / 1e3 }
	of := func(event string) float64 {
		e := j.wait(event, map[string]any{"phase": "quarantine", "session": session})
		at, err := time.Parse(time.RFC3339Nano, e["time"].(string))
		j.must(err)
		return ms(at)
	}
	return map[string]float64{"in-force": of("phase"), "told": ms(j.told), "on-disk": of("phase.stored"), "last-packet": ms(time.Unix(0, last.Load()))}
}
