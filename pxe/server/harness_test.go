package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	api "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/images/manifest"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/netns"
	"portcullis/internal/rpc"
	"portcullis/pxe/artefact/artefacttest"
)

// childEnv makes this test binary be pxed; restEnv is how long after a boot it ends.
const (
	childEnv = "PORTCULLIS_TEST_PXED"
	restEnv  = "PORTCULLIS_TEST_REST"
)

const (
	pcMAC   = "52:54:00:aa:00:02"
	pcIface = "pc0"
	piIface = "pi0"
)

var (
	piPrefix  = netip.MustParsePrefix("10.77.0.1/24")
	pcAddress = netip.MustParseAddr("10.77.0.2")
)

func TestMain(m *testing.M) {
	file := os.Getenv(childEnv)
	if file == "" {
		os.Exit(m.Run())
	}
	cfg, err := config.Load(file)
	if err == nil {
		ctx, cancel := context.WithCancel(context.Background())
		go func() { // SIGTERM and stdin's end both mean that the test is over
			io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
		rest, _ := time.ParseDuration(os.Getenv(restEnv))
		err = Run(ctx, cfg, rest, event.NewJSON(os.Stdout, "pxed", time.Now))
	}
	switch {
	case errors.Is(err, ErrDone):
		os.Exit(rpc.ExitAtRest)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// bench is a Pi and a PC on a cable, pxed on the Pi, and a recording gatewayd.
type bench struct {
	t       *testing.T
	pi, pc  *netns.Host
	image   *artefacttest.Image
	config  string
	run     string
	state   string
	gateway *recorder
	cmd     *exec.Cmd
	stdin   io.Closer
	events  *eventLog
}

func newBench(t *testing.T, pxeExtra string) *bench {
	t.Helper()
	hosts := netns.ForTest(t, "pi", "pc")
	b := &bench{t: t, pi: hosts[0], pc: hosts[1], image: artefacttest.New(t, nil), events: newEventLog()}
	b.cable()
	dir := t.TempDir()
	b.run, b.state, b.config = filepath.Join(dir, "run"), filepath.Join(dir, "state"), filepath.Join(dir, "portcullis.yaml")
	text := fmt.Sprintf(`run_dir: %s
state_dir: %s
link: {interface: %s, address: %s, pc_address: %s, pc_mac: "%s"}
pxe:
  image_dir: %s
  release_keys: [%s]
  threshold: 1
%s`, b.run, b.state, piIface, piPrefix, pcAddress, pcMAC, b.image.Dir, b.image.ReleaseKey(), pxeExtra)
	if err := os.WriteFile(b.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b.gateway = &recorder{}
	b.gateway.start(t, b.run)
	return b
}

func (b *bench) cable() {
	b.t.Helper()
	must := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	must(netns.Veth(b.pi, piIface, b.pc, pcIface))
	must(b.pc.SetMAC(pcIface, pcMAC))
	must(b.pi.Address(piIface, piPrefix))
	must(b.pi.Up(piIface))
	must(b.pc.Up(pcIface))
}

// lease gives the PC the address by hand, for tests that do not go through a DHCP client.
func (b *bench) lease() {
	b.t.Helper()
	if err := b.pc.Address(pcIface, netip.PrefixFrom(pcAddress, 24)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) start() {
	b.t.Helper()
	b.cmd = exec.Command(os.Args[0], "-test.run=^$")
	b.cmd.Env = append(os.Environ(), childEnv+"="+b.config)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	b.cmd.Stderr = &stderr
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if b.stdin, err = b.cmd.StdinPipe(); err != nil {
		b.t.Fatal(err)
	}
	if err := b.pi.Start(b.cmd); err != nil {
		b.t.Fatal(err)
	}
	seen := b.events.count("ready")
	go b.events.read(out)
	cmd := b.cmd
	b.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if stderr.Len() > 0 {
			b.t.Logf("pxed: %s", stderr.String())
		}
		if b.t.Failed() {
			b.t.Logf("events:\n%s", b.events.String())
		}
	})
	b.events.wait(b.t, "ready", seen+1)
}

// kill is kill -9.
func (b *bench) kill() {
	b.t.Helper()
	if err := b.cmd.Process.Kill(); err != nil {
		b.t.Fatal(err)
	}
	b.cmd.Wait()
}

func (b *bench) stop() error {
	b.stdin.Close()
	return b.cmd.Wait()
}

func (b *bench) boot() portcullisv1connect.BootClient {
	return portcullisv1connect.NewBootClient(rpc.Client(filepath.Join(b.run, rpc.BootSocket)), rpc.BaseURL, connect.WithGRPC())
}

// newest returns the newest session.
func (b *bench) newest() *api.Session {
	b.t.Helper()
	r, err := b.boot().GetSession(context.Background(), connect.NewRequest(&api.GetSessionRequest{}))
	if err != nil {
		b.t.Fatal(err)
	}
	return r.Msg.GetSession()
}

// web is an HTTP client on the PC.
func (b *bench) web() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return b.pc.Dial(ctx, network, address)
		},
	}}
}

func (b *bench) get(url, byteRange string) (*http.Response, []byte, error) {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if byteRange != "" {
		r.Header.Set("Range", byteRange)
	}
	resp, err := b.web().Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func (b *bench) url(sid, name string) string {
	return "http://" + piPrefix.Addr().String() + "/b/" + sid + "/" + name
}

// fetchAll takes everything that a UEFI HTTP boot needs.
func (b *bench) fetchAll(sid string) {
	b.t.Helper()
	for _, name := range []string{manifest.UKI, manifest.Root} {
		_, body, err := b.get(b.url(sid, name), "")
		if err != nil || !bytes.Equal(body, b.image.Content[name]) {
			b.t.Fatalf("%s: %d bytes, %v", name, len(body), err)
		}
	}
}

// pcSocket opens a UDP socket on the PC that can broadcast before it has an address.
func (b *bench) pcSocket(port int) net.PacketConn {
	b.t.Helper()
	var c net.PacketConn
	err := b.pc.Do(func() error {
		lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			if e := raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(int(fd), pcIface))
			}); e != nil {
				return e
			}
			return err
		}}
		var err error
		c, err = lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", port))
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// recorder is a gatewayd that remembers what it was told.
type recorder struct {
	portcullisv1connect.UnimplementedGatewayHandler
	mu      sync.Mutex
	calls   []string
	session string
	fail    bool
	stop    func()
	seen    func(call string) // called before the answer
}

func (r *recorder) start(t *testing.T, runDir string) {
	t.Helper()
	l, err := rpc.Listen(filepath.Join(runDir, rpc.GatewaySocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewGatewayHandler(r))
	done := make(chan struct{})
	go func() { defer close(done); rpc.Serve(ctx, l, mux) }()
	r.stop = func() { cancel(); <-done }
	t.Cleanup(r.stop)
}

func (r *recorder) note(call string) error {
	r.mu.Lock()
	r.calls = append(r.calls, call)
	fail, seen := r.fail, r.seen
	r.mu.Unlock()
	if seen != nil {
		seen(call)
	}
	if fail {
		return connect.NewError(connect.CodeUnavailable, errors.New("refused by the test"))
	}
	return nil
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.calls...)
}

func (r *recorder) OpenBoot(_ context.Context, q *connect.Request[api.OpenBootRequest]) (*connect.Response[api.OpenBootResponse], error) {
	if err := r.note("open " + q.Msg.Session + " " + q.Msg.Mac + " " + q.Msg.Address); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.session = q.Msg.Session
	r.mu.Unlock()
	return connect.NewResponse(&api.OpenBootResponse{}), nil
}

func (r *recorder) SetPhase(_ context.Context, q *connect.Request[api.SetPhaseRequest]) (*connect.Response[api.SetPhaseResponse], error) {
	return connect.NewResponse(&api.SetPhaseResponse{}), r.note(q.Msg.Phase.String() + " " + q.Msg.Session)
}

func (r *recorder) GetGatewayStatus(context.Context, *connect.Request[api.GetGatewayStatusRequest]) (*connect.Response[api.GetGatewayStatusResponse], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return connect.NewResponse(&api.GetGatewayStatusResponse{Session: r.session}), nil
}

// eventLog collects a daemon's events.
type eventLog struct {
	mu   sync.Mutex
	all  []map[string]any
	news chan struct{}
}

func newEventLog() *eventLog { return &eventLog{news: make(chan struct{})} }

func (l *eventLog) read(r io.Reader) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e map[string]any
		if json.Unmarshal(in.Bytes(), &e) != nil {
			e = map[string]any{"event": "not-json", "line": in.Text()}
		}
		l.mu.Lock()
		l.all = append(l.all, e)
		close(l.news)
		l.news = make(chan struct{})
		l.mu.Unlock()
	}
}

func (l *eventLog) named(name string) []map[string]any {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []map[string]any
	for _, e := range l.all {
		if e["event"] == name {
			found = append(found, e)
		}
	}
	return found
}

func (l *eventLog) count(name string) int { return len(l.named(name)) }

// wait returns the n-th event of that name.
func (l *eventLog) wait(t *testing.T, name string, n int) map[string]any {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		news := l.news
		l.mu.Unlock()
		if found := l.named(name); len(found) >= n {
			return found[n-1]
		}
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("event %s did not come %d times; events:\n%s", name, n, l)
		}
	}
}

func (l *eventLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b bytes.Buffer
	for _, e := range l.all {
		delete(e, "packet")
		line, _ := json.Marshal(e)
		b.Write(append(line, '\n'))
	}
	return b.String()
}
