package expect_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"portcullis/agent/claim"
	"portcullis/agent/run"
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
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

// A rack is many PCs with the recorded state of machine, each with a key, a channel and
// a boot session of its own, and one attestd. TestRack runs a small one in one process;
// bench/attest runs large ones against cmd/attestd (rackbench_test.go).

// rackOps are the ops whose answer is the state of the machine. The ones that hash
// memory or the disk are left to the lab: what they cost is the hash.
var rackOps = []string{protocol.OpBoot, protocol.OpProcs, protocol.OpHw, protocol.OpModules, protocol.OpNet, protocol.OpTrace,
	protocol.OpContainer, protocol.OpIma, protocol.OpFiles, protocol.OpTpm, protocol.OpTsm}

type rackSetup struct {
	t     testing.TB
	dir   string
	pcs   int
	mean  time.Duration
	ops   []string
	chip  bool          // each PC has one
	think time.Duration // of a chip for an answer, on average

	m     *machine
	image *manifesttest.Image
}

func newRack(t testing.TB, dir string, pcs int, mean time.Duration, ops []string) *rackSetup {
	t.Helper()
	r := &rackSetup{t: t, dir: dir, pcs: pcs, mean: mean, ops: ops, m: newMachine(t)}
	r.image = manifesttest.New(t, func(m *manifest.Manifest) {
		m.NotBefore, m.NotAfter = time.Now().Add(-time.Hour).UTC().Truncate(time.Hour), time.Now().Add(24*time.Hour).UTC().Truncate(time.Hour)
	})
	return r
}

func pcName(i int) string { return fmt.Sprintf("pc-%d", i) }
func (r *rackSetup) path(i int, more string) string {
	return filepath.Join(config.PCRunDir(r.dir, pcName(i)), more)
}

// rackSession is the boot session of a PC.
func rackSession(i int) string {
	id := []byte(strings.Repeat("a", 26))
	for k := range 4 {
		id[k] += byte(i % 26)
		i /= 26
	}
	return string(id)
}

// judge runs attestd until ctx ends. listening is told the addresses by PC.
func (r *rackSetup) judge(ctx context.Context, out io.Writer, listening func([]string) error) error {
	record, err := server.OpenRecord(filepath.Join(r.dir, "verdicts"), r.image.GatewayKey)
	if err != nil {
		return err
	}
	defer record.Close()
	images, err := server.NewImages(r.image.Dir, []string{base64.StdEncoding.EncodeToString(r.image.Trust.ReleaseKeys[0])}, 1, 0,
		func(*protocol.Image) (all []protocol.Expectation, err error) {
			for _, op := range r.ops {
				if r.m.twins[op] == nil {
					return nil, fmt.Errorf("no op %q", op)
				}
				all = append(all, r.m.twins[op])
			}
			return all, nil
		})
	if err != nil {
		return err
	}
	plan, err := schedule.NewPlan(r.mean, min(r.mean/10, 200*time.Millisecond))
	if err != nil {
		return err
	}
	events := event.NewJSON(out, "attestd", time.Now)
	var all []*server.Server
	var addresses []string
	listeners := make(map[string]net.Listener)
	for i := range r.pcs {
		refs, err := reference.Open(r.path(i, "references"))
		if err != nil {
			return err
		}
		epochs, err := continuity.Open(r.path(i, "epoch.json"))
		if err != nil {
			return err
		}
		s, err := server.New(server.Options{Name: pcName(i), Key: r.image.GatewayKey,
			Boot:    portcullisv1connect.NewBootClient(rpc.Client(r.path(i, rpc.BootSocket)), rpc.BaseURL),
			Gateway: portcullisv1connect.NewGatewayClient(rpc.Client(r.path(i, rpc.GatewaySocket)), rpc.BaseURL),
			Images:  images, Refs: refs, Record: record, Events: events.With(event.Fields{"pc": pcName(i)}), Clock: clock.Real{},
			Random: rand.Reader, Plan: plan, Epochs: epochs, Rekey: 10 * time.Minute, Deadline: 10 * time.Second, Posture: "none",
			Policy: policy.Default(), Actions: func(*server.Server) (server.Actions, error) { return idle{}, nil }})
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		all, addresses, listeners[pcName(i)] = append(all, s), append(addresses, l.Addr().String()), l
	}
	fleet, err := server.NewFleet(all)
	if err != nil {
		return err
	}
	if err := listening(addresses); err != nil {
		return err
	}
	return fleet.Run(ctx, func(_ context.Context, pc string) (net.Listener, error) { return listeners[pc], nil })
}

// idle carries out no action: the PCs of a rack are honest.
type idle struct{}

func (idle) Post(policy.Firing) error      { return nil }
func (idle) Fired(string) time.Time        { return time.Time{} }
func (idle) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (idle) Close() error                  { return nil }

// pi is the pxed and the gatewayd of one PC.
type pi struct {
	portcullisv1connect.UnimplementedBootHandler
	portcullisv1connect.UnimplementedGatewayHandler
	mu      sync.Mutex
	session *v1.Session
	phase   v1.Phase
}

func (p *pi) now() *v1.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.session
	return &v1.Session{Id: s.Id, Mac: s.Mac, Address: s.Address, State: s.State, ClaimKey: s.ClaimKey, ManifestDigest: s.ManifestDigest}
}

func (p *pi) WatchSessions(ctx context.Context, _ *connect.Request[v1.WatchSessionsRequest], out *connect.ServerStream[v1.WatchSessionsResponse]) error {
	if err := out.Send(&v1.WatchSessionsResponse{Session: p.now()}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (p *pi) GetSession(context.Context, *connect.Request[v1.GetSessionRequest]) (*connect.Response[v1.GetSessionResponse], error) {
	return connect.NewResponse(&v1.GetSessionResponse{Session: p.now()}), nil
}

func (p *pi) Claim(_ context.Context, r *connect.Request[v1.ClaimRequest]) (*connect.Response[v1.ClaimResponse], error) {
	p.mu.Lock()
	p.session.State, p.session.ClaimKey, p.session.ManifestDigest = v1.SessionState_SESSION_STATE_CLAIMED, r.Msg.PublicKey, r.Msg.ManifestDigest
	p.mu.Unlock()
	return connect.NewResponse(&v1.ClaimResponse{Accepted: true, Session: p.now()}), nil
}

func (p *pi) SetPhase(_ context.Context, r *connect.Request[v1.SetPhaseRequest]) (*connect.Response[v1.SetPhaseResponse], error) {
	p.mu.Lock()
	p.phase = r.Msg.Phase
	p.mu.Unlock()
	return connect.NewResponse(&v1.SetPhaseResponse{}), nil
}

func (p *pi) GetGatewayStatus(context.Context, *connect.Request[v1.GetGatewayStatusRequest]) (*connect.Response[v1.GetGatewayStatusResponse], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return connect.NewResponse(&v1.GetGatewayStatusResponse{Carrier: true, Phase: p.phase, Session: p.session.Id}), nil
}

func (p *pi) WatchGateway(ctx context.Context, _ *connect.Request[v1.WatchGatewayRequest], out *connect.ServerStream[v1.WatchGatewayResponse]) error {
	if err := out.Send(&v1.WatchGatewayResponse{}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// serve answers for pxed and gatewayd of every PC.
func (r *rackSetup) serve(ctx context.Context) error {
	for i := range r.pcs {
		p := &pi{session: &v1.Session{Id: rackSession(i), Mac: testMAC, Address: "10.77.0.2", State: v1.SessionState_SESSION_STATE_SERVED}}
		for name, mount := range map[string]func() (string, http.Handler){
			rpc.BootSocket:    func() (string, http.Handler) { return portcullisv1connect.NewBootHandler(p) },
			rpc.GatewaySocket: func() (string, http.Handler) { return portcullisv1connect.NewGatewayHandler(p) },
		} {
			mux := http.NewServeMux()
			mux.Handle(mount())
			l, err := rpc.Listen(r.path(i, name), nil)
			if err != nil {
				return err
			}
			go rpc.Serve(ctx, l, mux)
		}
	}
	return nil
}

// agents runs the PCs until ctx ends; each comes on its own within about a gap.
func (r *rackSetup) agents(ctx context.Context, addresses []string, log func(string)) {
	envelope, err := os.ReadFile(filepath.Join(r.image.Dir, manifest.Envelope))
	r.m.check(err)
	v, err := manifest.Open(envelope, r.image.Trust, time.Now(), 0)
	r.m.check(err)
	root, err := hex.DecodeString(r.image.Manifest.Verity.RootHash)
	r.m.check(err)
	probes := r.recorded()
	var group sync.WaitGroup
	for i, address := range addresses {
		key, err := claim.NewKey()
		r.m.check(err)
		a := &run.Agent{Address: address, Key: key, Probes: r.of(probes), Down: func(bool) error { return nil }, Log: log,
			Facts: claim.Facts{Session: rackSession(i), ManifestDigest: v.Digest, RootHash: [32]byte(root), Gateway: r.image.GatewayKey.Public().(ed25519.PublicKey)}}
		group.Go(func() { a.Run(ctx) })
		if i%50 == 49 {
			time.Sleep(400 * time.Millisecond) // a rack does not boot in one moment
		}
	}
	group.Wait()
}

// recorded are the probes, each of which reads the machine once for each question and
// keys the digest of what it has read anew for each answer.
func (r *rackSetup) recorded() (all []protocol.Probe) {
	for _, op := range r.ops {
		all = append(all, &recording{Probe: r.m.probes[op], data: make(map[string][]byte)})
	}
	return all
}

// of is the probes of one PC.
func (r *rackSetup) of(probes []protocol.Probe) []protocol.Probe {
	if !r.chip {
		return probes
	}
	return append(slices.DeleteFunc(slices.Clone(probes), func(p protocol.Probe) bool { return p.Name() == protocol.OpTpm }), &slowChip{newSoftChip(r.t), r.think})
}

type recording struct {
	protocol.Probe
	mu   sync.Mutex
	data map[string][]byte // by parameters, at most maxRecorded
}

// maxRecorded bounds what is remembered of a probe whose parameters are drawn anew.
const maxRecorded = 64

func (p *recording) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	p.mu.Lock()
	data, ok := p.data[string(params)]
	p.mu.Unlock()
	if ok {
		return protocol.Output{Digest: key.Digest(p.Name(), params, data), Data: data}, nil
	}
	out, err := p.Probe.Run(ctx, key, params)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || len(p.data) >= maxRecorded || out.Digest != key.Digest(p.Name(), params, out.Data) {
		return out, err
	}
	// Some answers are keyed inside: they are made anew each time.
	key[0] ^= 1
	if again, err := p.Probe.Run(ctx, key, params); err == nil && bytes.Equal(again.Data, out.Data) {
		p.data[string(params)] = out.Data
	}
	return out, nil
}

// What the rack's PCs answer is judged for what it is: all are trusted, and stay so.
func TestRack(t *testing.T) {
	t.Run("state", func(t *testing.T) { testRack(t, rackOps, false) })
	t.Run("chips", func(t *testing.T) { testRack(t, []string{protocol.OpTpm}, true) })
}

func testRack(t *testing.T, ops []string, chip bool) {
	dir, err := os.MkdirTemp("", "rack") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const pcs, each = 3, 12
	r := newRack(t, dir, pcs, 100*time.Millisecond, ops)
	if r.chip = chip; chip {
		softBooted(t, r.m.image.Manifest)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.serve(ctx); err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	ended := make(chan error, 2)
	come := make(chan []string, 1)
	go func() {
		err := r.judge(ctx, writer, func(a []string) error { come <- a; return nil })
		writer.Close()
		ended <- err
	}()
	go func() { r.agents(ctx, <-come, func(s string) { t.Log(s) }); ended <- nil }()
	judged, states := map[string]int{}, map[string]string{}
	for lines := bufio.NewScanner(reader); lines.Scan(); {
		if ctx.Err() != nil {
			continue // both ends are told to end: a PC that ends first is missed
		}
		var e struct{ Event, PC, State, Reason, Detail, Probe, Class string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		switch e.Event {
		case "finding":
			if e.Class != "info" {
				t.Errorf("%s: %+v", e.PC, e)
			}
		case "verdict":
			states[e.PC] = e.State
		case "evidence":
			judged[e.PC]++
		}
		if len(judged) == pcs && slices.Min([]int{judged[pcName(0)], judged[pcName(1)], judged[pcName(2)]}) >= each {
			cancel()
		}
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for i := range pcs {
		if s := states[pcName(i)]; s != "trusted" || judged[pcName(i)] < each {
			t.Errorf("%s: %s after %d answers", pcName(i), s, judged[pcName(i)])
		}
	}
}
