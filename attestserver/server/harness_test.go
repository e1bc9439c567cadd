package server_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"portcullis/agent/claim"
	"portcullis/agent/run"
	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/action"
	"portcullis/attestserver/continuity"
	"portcullis/attestserver/identity"
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
	"portcullis/internal/translog"
)

const sid = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
const sid2 = "bbbbbbbbbbbbbbbbbbbbbbbbbb"

// patience bounds every wait of a test; nothing sleeps for luck.
const patience = 20 * time.Second

// lab is a Pi and a PC in one process.
type lab struct {
	fleet    *server.Fleet
	t        testing.TB
	listen   func() (net.Listener, error) // nil: on loopback
	rekey    time.Duration                // 0: longer than any test
	name     string                       // "" where there is no other PC
	built    atomic.Int32                 // expectations of images
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
	policy   *policy.Policy
	webhooks []*action.Target
	ladder   action.Ladder
	downs    chan bool // what agents were asked: off?

	address string
	events  *events
	attest  portcullisv1connect.AttestClient
	server  *server.Server
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
		machine: &machine{facts: make(map[string]string), once: make(map[string]string), class: "x86.6.6.3"},
		names:   []string{"boot", "procs", "hw", "ktext", "net"}, mean: 100 * time.Millisecond, min: 20 * time.Millisecond, deadline: 2 * time.Second,
		policy: policy.Default(), downs: make(chan bool, 8)}
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
	startFleet(l)
}

// startFleet starts one attestd for the PCs of all labs, with the state, the image and
// the socket of the first one.
func startFleet(labs ...*lab) {
	first := labs[0]
	t := first.t
	t.Helper()
	record, err := server.OpenRecord(filepath.Join(first.dir, "verdicts"), first.image.GatewayKey)
	if err != nil {
		t.Fatal(err)
	}
	images := first.images()
	var all []*server.Server
	listeners := make(map[string]net.Listener)
	for _, l := range labs {
		all = append(all, l.open(record, images))
		listen := func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
		if l.listen != nil {
			listen = l.listen
		}
		ln, err := listen()
		if err != nil {
			t.Fatal(err)
		}
		l.address, listeners[l.name] = ln.Addr().String(), ln
	}
	fleet, err := server.NewFleet(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range labs {
		l.fleet = fleet
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- fleet.Run(ctx, func(_ context.Context, pc string) (net.Listener, error) { return listeners[pc], nil })
	}()
	socket, err := rpc.Listen(filepath.Join(first.dir, rpc.AttestSocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { rpc.Serve(ctx, socket, fleet.Handler()); close(served) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("attestd ended: %v", err)
		}
		<-served // closing its socket takes the path away, which a next one binds anew
		record.Close()
	})
	t.Cleanup(stop)
	for _, l := range labs {
		l.attest, l.stop = portcullisv1connect.NewAttestClient(first.client(rpc.AttestSocket), rpc.BaseURL), stop
	}
}

// images are those that the lab's PC boots.
func (l *lab) images() *server.Images {
	l.t.Helper()
	images, err := server.NewImages(l.image.Dir, []string{base64.StdEncoding.EncodeToString(l.image.Trust.ReleaseKeys[0])}, 1, 0,
		func(*protocol.Image) ([]protocol.Expectation, error) {
			l.built.Add(1)
			var all []protocol.Expectation
			for _, n := range l.names {
				switch {
				case n == "root":
					all = append(all, &stubRooted{stubExpect: stubExpect{n}})
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
	return images
}

// open opens what is the PC's own.
func (l *lab) open(record *server.Record, images *server.Images) *server.Server {
	l.t.Helper()
	refs, err := reference.Open(filepath.Join(l.dir, "references"))
	if err != nil {
		l.t.Fatal(err)
	}
	plan, err := schedule.NewPlan(l.mean, l.min)
	if err != nil {
		l.t.Fatal(err)
	}
	epochs, err := continuity.Open(filepath.Join(l.dir, "epoch.json"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.events = newEvents()
	s, err := server.New(server.Options{
		Name: l.name, Key: l.image.GatewayKey,
		Boot:    portcullisv1connect.NewBootClient(l.client(rpc.BootSocket), rpc.BaseURL),
		Gateway: portcullisv1connect.NewGatewayClient(l.client(rpc.GatewaySocket), rpc.BaseURL),
		Images:  images, Refs: refs, Record: record, Events: event.NewJSON(l.events, "attestd", time.Now),
		Clock: clock.Real{}, Random: rand.Reader, Plan: plan, Deadline: l.deadline, Posture: "none", Epochs: epochs, Rekey: cmp.Or(l.rekey, time.Hour),
		Policy: l.policy, Actions: l.actions,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.server = s
	return s
}

// log reads the verdict log as somebody does who knows the gateway's public key.
func (l *lab) log() *translog.Reader {
	l.t.Helper()
	key, err := identity.LogVerifier(l.image.GatewayKey.Public().(ed25519.PublicKey))
	if err != nil {
		l.t.Fatal(err)
	}
	r, err := translog.NewReader(os.DirFS(filepath.Join(l.dir, "verdicts")), key)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func (l *lab) down(off bool) error {
	l.downs <- off
	return nil
}

// actions opens the real engine; relay and hook are the fake gatewayd's.
func (l *lab) actions(s *server.Server) (server.Actions, error) {
	return action.Open(action.Options{
		Journal: filepath.Join(l.dir, "actions.journal"), PC: s, Webhooks: l.webhooks, Ladder: l.ladder,
		Gateway: portcullisv1connect.NewGatewayClient(l.client(rpc.GatewaySocket), rpc.BaseURL),
		Events:  event.NewJSON(l.events, "attestd", time.Now), Clock: clock.Real{}, Random: rand.Reader,
	})
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
	a := &run.Agent{Address: l.address, Facts: l.facts(session), Key: key, Probes: probes, Down: l.down, Log: func(s string) { l.t.Log("agent:", s) }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { a.Run(ctx); close(done) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	l.t.Cleanup(stop)
	return stop
}

func (l *lab) verdict() *portcullisv1.GetVerdictResponse {
	l.t.Helper()
	r, err := l.attest.GetVerdict(context.Background(), connect.NewRequest(&portcullisv1.GetVerdictRequest{Pc: l.name}))
	if err != nil {
		l.t.Fatal(err)
	}
	return r.Msg
}
