package world

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"portcullis/internal/event"
	"portcullis/internal/netns"
)

const childEnv = "PORTCULLIS_TEST_WORLD"

// TestMain lets the test binary be the world: its capture must run in a process
// that lives in the namespace.
func TestMain(m *testing.M) {
	control := os.Getenv(childEnv)
	if control == "" {
		os.Exit(m.Run())
	}
	out := event.NewJSON(os.Stdout, "world", time.Now)
	if err := Run(context.Background(), Options{Interface: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10")}, Control: control},
		func() { out.Emit("ready", nil) }); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

// TestWorldCountsEverythingThatReachesIt is the proof that a count of nought
// means something: each kind of traffic raises its count, and frames those of all.
func TestWorldCountsEverythingThatReachesIt(t *testing.T) {
	hosts := netns.ForTest(t, "gw", "net")
	gw, out := hosts[0], hosts[1]
	for _, h := range hosts {
		if err := h.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Veth(gw, "up0", out, "eth0"); err != nil {
		t.Fatal(err)
	}
	for h, a := range map[*netns.Host]string{gw: "203.0.113.1/24", out: "203.0.113.10/24"} {
		link := "eth0"
		if h == gw {
			link = "up0"
		}
		if err := h.Address(link, netip.MustParsePrefix(a)); err != nil {
			t.Fatal(err)
		}
	}
	control := filepath.Join(t.TempDir(), "world.sock")
	child := startChild(t, out, control)
	defer child()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	before, err := Get(ctx, control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := gw.Dial(ctx, "tcp", "203.0.113.10:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET")
	b := make([]byte, 200)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != WebText {
		t.Fatalf("web answered %q, %v", b[:n], err)
	}
	for _, to := range []string{"203.0.113.10:7", "203.0.113.10:53"} {
		u, err := gw.Dial(ctx, "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		u.Write([]byte("not DNS"))
		if to == "203.0.113.10:7" {
			if n, err := u.Read(b); err != nil || string(b[:n]) != "not DNS" {
				t.Fatalf("echo answered %q, %v", b[:n], err)
			}
		}
		u.Close()
	}
	for {
		r, err := Get(ctx, control)
		if err != nil {
			t.Fatal(err)
		}
		if r.Web == 1 && r.Echo == 1 && r.DNS == 1 && r.Frames >= before.Frames+5 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the report is %+v", r)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
