package services

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/netns"
	"portcullis/internal/rpc"
)

// bellEnv makes this test's program a bell: the path of pxed's socket.
const bellEnv = "PORTCULLIS_TEST_BELL"

// listenEnv makes it another process that listens at a socket until it is killed.
const listenEnv = "PORTCULLIS_TEST_LISTEN"

func listenAt(socket string) {
	l, err := net.Listen("unix", socket)
	for err == nil {
		_, err = l.Accept()
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// another begins such a process, and returns what ends it.
func another(t *testing.T, socket string) (end func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), listenEnv+"="+socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	t.Cleanup(end)
	until(t, "a process that listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return end
}

func TestMain(m *testing.M) {
	if socket := os.Getenv(listenEnv); socket != "" {
		listenAt(socket)
	}
	socket := os.Getenv(bellEnv)
	if socket == "" {
		os.Exit(m.Run())
	}
	why, err := BootBell{Interface: "pi0", Socket: socket}.Wait(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(why)
}

// belfry is a Pi and a PC on a cable, and a bell on the Pi.
type belfry struct {
	pi, pc *netns.Host
	socket string
	cmd    *exec.Cmd
	said   bytes.Buffer
	ended  chan error
}

func newBelfry(t *testing.T) *belfry {
	t.Helper()
	hosts := netns.ForTest(t, "pi", "pc")
	b := &belfry{pi: hosts[0], pc: hosts[1], socket: filepath.Join(t.TempDir(), "pxed.sock"), ended: make(chan error, 1)}
	b.cable(t)
	b.cmd = exec.Command(os.Args[0])
	b.cmd.Env = append(os.Environ(), bellEnv+"="+b.socket)
	b.cmd.Stdout, b.cmd.Stderr = &b.said, &b.said
	return b
}

func (b *belfry) cable(t *testing.T) {
	t.Helper()
	for _, f := range []func() error{
		func() error { return netns.Veth(b.pi, "pi0", b.pc, "pc0") },
		func() error { return b.pi.Address("pi0", netip.MustParsePrefix("10.77.0.1/24")) },
		func() error { return b.pi.Up("pi0") },
		func() error { return b.pc.Address("pc0", netip.MustParsePrefix("10.77.0.2/24")) },
		func() error { return b.pc.Up("pc0") },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
}

// listen begins to listen; it returns when the bell answers at pxed's socket.
func (b *belfry) listen(t *testing.T) {
	t.Helper()
	if err := b.pi.Start(b.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { b.ended <- b.cmd.Wait() }()
	t.Cleanup(func() { b.cmd.Process.Kill() })
	until(t, "the bell answers at pxed's socket", func() bool {
		c, err := net.Dial("unix", b.socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (b *belfry) expect(t *testing.T, want string) {
	t.Helper()
	select {
	case err := <-b.ended:
		if err != nil || b.said.String() != want {
			t.Fatalf("it rang for %q: %v", b.said.String(), err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it did not ring for %s", want)
	}
	if _, err := os.Stat(b.socket); err == nil {
		t.Error("its socket is left")
	}
}

func (b *belfry) client() portcullisv1connect.BootClient {
	return portcullisv1connect.NewBootClient(rpc.Client(b.socket), rpc.BaseURL)
}

// send has the PC send datagrams to everybody until the bell has rung.
func (b *belfry) send(t *testing.T) {
	t.Helper()
	c, err := b.pc.Dial(t.Context(), "udp4", fmt.Sprintf("10.77.0.255:%d", bootPort))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer c.Close()
		for len(b.ended) == 0 && t.Context().Err() == nil {
			c.Write(make([]byte, 600)) // refused where nobody listens yet
			time.Sleep(50 * time.Millisecond)
		}
	}()
}

// A packet for DHCP wakes pxed.
func TestBellHearsThePC(t *testing.T) {
	b := newBelfry(t)
	b.listen(t)
	b.send(t)
	b.expect(t, whyPC)
}

// A cable that is pulled and plugged in again (USB Ethernet) is heard all the same.
func TestBellHearsANewInterface(t *testing.T) {
	b := newBelfry(t)
	b.listen(t)
	if err := b.pi.DeleteLink("pi0"); err != nil {
		t.Fatal(err)
	}
	b.cable(t)
	b.send(t)
	b.expect(t, whyPC)
}

// attestd that asks about a session wakes pxed; one that only watches, and who looks for
// the newest, do not.
func TestBellHearsAttestd(t *testing.T) {
	for name, ask := range map[string]func(portcullisv1connect.BootClient) error{
		"a claim": func(c portcullisv1connect.BootClient) error {
			_, err := c.Claim(t.Context(), connect.NewRequest(&v1.ClaimRequest{Session: "x"}))
			return err
		},
		"a session": func(c portcullisv1connect.BootClient) error {
			_, err := c.GetSession(t.Context(), connect.NewRequest(&v1.GetSessionRequest{Id: "x"}))
			return err
		},
	} {
		b := newBelfry(t)
		b.listen(t)
		watched, err := b.client().WatchSessions(t.Context(), connect.NewRequest(&v1.WatchSessionsRequest{}))
		if err != nil || !watched.Receive() || watched.Msg().Session.GetId() != "" {
			t.Fatalf("%s: watching: %v", name, err)
		}
		if _, err := b.client().GetSession(t.Context(), connect.NewRequest(&v1.GetSessionRequest{})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("%s: the newest session: %v", name, err)
		}
		select {
		case err := <-b.ended:
			t.Fatalf("%s: it rang for %q before: %v", name, b.said.String(), err)
		case <-time.After(100 * time.Millisecond):
		}
		if err := ask(b.client()); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("%s: %v", name, err)
		}
		b.expect(t, whyClaim)
		if watched.Receive() {
			t.Errorf("%s: the watch goes on", name)
		}
		watched.Close()
	}
}

// What cannot be listened to is told: pxed is started then.
func TestBellThatCannotListen(t *testing.T) {
	b := newBelfry(t)
	taken, err := b.pi.ListenPacket("udp4", "0.0.0.0:67")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := b.pi.Start(b.cmd); err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Wait(); err == nil {
		t.Errorf("a taken port is no error: %q", &b.said)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}
