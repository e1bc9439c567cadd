package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/netns"
	"portcullis/internal/rpc"
)

const (
	pcMAC  = "52:54:00:12:34:56"
	gwMAC  = "52:54:00:00:00:01"
	pcIP   = "10.77.0.2"
	gwIP   = "10.77.0.1"
	upIP   = "203.0.113.10"
	first  = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	second = "bbbbbbbbbbbbbbbbbbbbbbbbbb"
)

var program, programDir string

// linked keeps the whole program in the test's own binary: a change of it must not be
// hidden by the cache of go test, which does not see what build builds.
var linked = run

func TestMain(m *testing.M) {
	code := build(m)
	runtime.KeepAlive(linked)
	os.Exit(code)
}

// programEnv names the real program where it was built before, in a machine without Go.
const programEnv = "PORTCULLIS_TEST_PROGRAM"

// build makes the real program; the tests run it as a child inside a host.
func build(m *testing.M) int {
	if built := os.Getenv(programEnv); built != "" {
		program, programDir = built, filepath.Dir(built)
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "gatewayd")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program, programDir = filepath.Join(dir, "gatewayd"), dir
	c := exec.Command("go", "build", "-o", program, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build gatewayd: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// rig is a PC on a cable, the Pi, and a machine outside that the PC wants to reach.
type rig struct {
	t          testing.TB
	pc, gw, up *netns.Host
	dir        string
	client     portcullisv1connect.GatewayClient
	child      *exec.Cmd
	events     chan map[string]any
	banAfter   int
	banFor     string
	banWindow  string
	attr       *syscall.SysProcAttr // of the child; nil = as the test

	name           string // of the PC among several; "" = the Pi has one
	port, mac, ip  string // of the PC
	config, socket string // files
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: they make network namespaces")
	}
	hosts := netns.ForTest(t, "pc", "gw", "up")
	for _, h := range hosts { // a test counts its own packets, not the hosts' neighbour discovery
		for _, name := range []string{"all", "default"} {
			if err := h.Sysctl("net.ipv6.conf."+name+".disable_ipv6", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := &rig{t: t, pc: hosts[0], gw: hosts[1], up: hosts[2], banAfter: 1000, banFor: "10m", banWindow: "1m",
		port: "pc0", mac: pcMAC, ip: pcIP}
	var err error
	r.dir, err = os.MkdirTemp("", "gw") // short: the path of a unix socket has 107 bytes
	r.must(err)
	t.Cleanup(func() { os.RemoveAll(r.dir) })
	r.config, r.socket = filepath.Join(r.dir, "portcullis.yaml"), filepath.Join(r.dir, "run", rpc.GatewaySocket)
	r.must(netns.Veth(r.pc, "eth0", r.gw, "pc0"))
	r.must(netns.Veth(r.gw, "up0", r.up, "eth0"))
	r.must(r.pc.SetMAC("eth0", pcMAC))
	r.must(r.gw.SetMAC("pc0", gwMAC))
	r.must(r.pc.Address("eth0", netip.MustParsePrefix(pcIP+"/24")))
	r.must(r.gw.Address("pc0", netip.MustParsePrefix(gwIP+"/24")))
	r.must(r.gw.Address("up0", netip.MustParsePrefix("203.0.113.1/24")))
	r.must(r.up.Address("eth0", netip.MustParsePrefix(upIP+"/24")))
	r.must(r.pc.Route(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(gwIP)))
	// The machine outside knows the way back without any address translation: a leak would be answered.
	r.must(r.up.Route(netip.MustParsePrefix("10.77.0.0/24"), netip.MustParseAddr("203.0.113.1")))
	t.Cleanup(r.stop)
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

const configText = `run_dir: %[1]s/run
state_dir: %[1]s/state
link:
  interface: pc0
  address: 10.77.0.1/24
  pc_address: 10.77.0.2
  pc_mac: "52:54:00:12:34:56"
gateway:
  uplink: up0
  ban_after: %[2]d
  ban_window: %[4]s
  ban_for: %[3]s
  nflog_group: 77
pxe:
  release_keys: ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]
`

// start runs gatewayd inside gw and waits until it is ready.
func (r *rig) start() {
	r.t.Helper()
	r.spawn()
	// Routing is open for the worst case: the tables alone have to hold.
	r.routing()
}

func (r *rig) spawn() {
	r.t.Helper()
	if r.name == "" {
		r.must(os.WriteFile(r.config, fmt.Appendf(nil, configText, r.dir, r.banAfter, r.banFor, r.banWindow), 0o644))
	}
	r.child = exec.Command(program, "--pc", r.name, "--config", r.config)
	r.child.SysProcAttr = r.attr
	r.child.Stderr = os.Stderr
	out, err := r.child.StdoutPipe()
	r.must(err)
	r.must(r.gw.Start(r.child))
	r.events = make(chan map[string]any, 4096)
	go readEvents(out, r.events)
	r.client = portcullisv1connect.NewGatewayClient(rpc.Client(r.socket), rpc.BaseURL)
	r.wait("ready", nil)
}

// routing opens what gatewayd closes beside its tables, when it has done so.
func (r *rig) routing() {
	if r.child != nil {
		r.status() // who shuts a run answers before it closes the routing, and the next call after
	}
	r.forward(r.port)
	r.forward("up0")
}

// forward opens the routing of an interface, whose name may have dots.
func (r *rig) forward(name string) {
	r.t.Helper()
	r.must(r.gw.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/forwarding", []byte("1"), 0) }))
}

func readEvents(out io.Reader, events chan<- map[string]any) {
	defer close(events)
	for s := bufio.NewScanner(out); s.Scan(); {
		var e map[string]any
		if json.Unmarshal(s.Bytes(), &e) == nil {
			select {
			case events <- e:
			default: // a test that does not read its events loses them
			}
		}
	}
}

// wait returns the next event of this name with these fields.
func (r *rig) wait(name string, fields map[string]any) map[string]any {
	r.t.Helper()
	limit := time.After(10 * time.Second)
	var seen []any
	for {
		select {
		case e, ok := <-r.events:
			if !ok {
				r.t.Fatalf("gatewayd ended while waiting for %s; seen %v", name, seen)
			}
			if e["event"] == name && has(e, fields) {
				return e
			}
			seen = append(seen, e)
		case <-limit:
			r.t.Fatalf("no event %s %v; seen %v", name, fields, seen)
		}
	}
}

func has(e, fields map[string]any) bool {
	for k, v := range fields {
		if fmt.Sprint(e[k]) != fmt.Sprint(v) {
			return false
		}
	}
	return true
}

func (r *rig) kill(sig syscall.Signal) {
	if r.child == nil {
		return
	}
	r.child.Process.Signal(sig)
	r.child.Wait()
	r.child = nil
}

func (r *rig) stop() { r.kill(syscall.SIGKILL) }

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) openBoot(session string) {
	r.t.Helper()
	_, err := r.client.OpenBoot(r.ctx(), connect.NewRequest(&v1.OpenBootRequest{Session: session, Mac: r.mac, Address: r.ip}))
	r.must(err)
}

func (r *rig) phase(session string, p v1.Phase, ttl time.Duration) error {
	_, err := r.client.SetPhase(r.ctx(), connect.NewRequest(&v1.SetPhaseRequest{Session: session, Phase: p, TtlMs: ttl.Milliseconds(), Reason: "test"}))
	return err
}

// run brings the PC to the run phase with these targets granted.
func (r *rig) run(ttl time.Duration, targets ...netip.AddrPort) {
	r.t.Helper()
	r.openBoot(first)
	r.must(r.phase(first, v1.Phase_PHASE_ATTEST, 0))
	for _, to := range targets {
		r.grant("tcp", to, time.Minute)
	}
	r.must(r.phase(first, v1.Phase_PHASE_RUN, ttl))
	r.routing()
}

func (r *rig) grant(proto string, to netip.AddrPort, d time.Duration) *v1.Grant {
	r.t.Helper()
	g, err := r.client.AddGrant(r.ctx(), connect.NewRequest(&v1.AddGrantRequest{Task: "t", Protocol: proto, Address: to.Addr().String(), Port: uint32(to.Port()), DurationMs: d.Milliseconds()}))
	r.must(err)
	return g.Msg.Grant
}

func (r *rig) status() *v1.GetGatewayStatusResponse {
	r.t.Helper()
	s, err := r.client.GetGatewayStatus(r.ctx(), connect.NewRequest(&v1.GetGatewayStatusRequest{}))
	r.must(err)
	return s.Msg
}

// eventually asks until ok; it ends the test after five seconds.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for limit := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			r.t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// dial opens TCP from the PC; local is the source port, 0 = any.
func (r *rig) dial(to string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return r.pc.Dial(ctx, "tcp4", to)
}

// listen accepts TCP at address and echoes.
func (r *rig) listen(h *netns.Host, address string) {
	r.t.Helper()
	l, err := h.Listen("tcp4", address)
	r.must(err)
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
}

// capture counts the frames that arrive at an interface of a host, ARP apart.
type capture struct{ fd int }

func (r *rig) capture(h *netns.Host, ifname string) *capture {
	r.t.Helper()
	fd := r.packetSocket(h, ifname, unix.ETH_P_ALL)
	r.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	return &capture{fd}
}

// frames drains the socket: frames from outside the host that are not ARP.
func (c *capture) frames() (list [][]byte) {
	buf := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return list
		}
		ll := from.(*unix.SockaddrLinklayer)
		if ll.Pkttype == unix.PACKET_OUTGOING || n < 14 || buf[12] == 0x08 && buf[13] == 0x06 {
			continue
		}
		list = append(list, append([]byte(nil), buf[:n]...))
	}
}

func (r *rig) packetSocket(h *netns.Host, ifname string, proto uint16) int {
	r.t.Helper()
	index, err := h.Index(ifname)
	r.must(err)
	be := proto<<8 | proto>>8
	var fd int
	r.must(h.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(be)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be, Ifindex: index})
	}))
	r.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// sender puts raw frames on the cable from the PC's side.
type sender struct {
	fd int
	t  testing.TB
}

func (r *rig) sender() *sender { return &sender{r.packetSocket(r.pc, "eth0", 0), r.t} }

func (s *sender) send(frame []byte) {
	s.t.Helper()
	for {
		_, err := unix.Write(s.fd, frame)
		if err == unix.ENOBUFS || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			s.t.Fatal(err)
		}
		return
	}
}
