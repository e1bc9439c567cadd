package netns

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestHostsTalkOverACableAndGoAway(t *testing.T) {
	l, err := NewLab("nstest")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := l.Host("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Host("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := Veth(a, "eth0", b, "eth0"); err != nil {
		t.Fatal(err)
	}
	for h, addr := range map[*Host]string{a: "192.0.2.1/24", b: "192.0.2.2/24"} {
		if err := h.Address("eth0", netip.MustParsePrefix(addr)); err != nil {
			t.Fatal(err)
		}
	}
	srv, err := b.Listen("tcp", "192.0.2.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := a.Dial(ctx, "tcp", "192.0.2.2:80")
	if err != nil {
		t.Fatalf("hosts do not reach each other: %v", err)
	}
	c.Close()
	out, err := a.Run(ctx, "ip", "-br", "link")
	if err != nil || !strings.Contains(string(out), "eth0") {
		t.Fatalf("ip link inside: %q, %v", out, err)
	}
	if err := a.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	if v, err := a.ReadSysctl("net.ipv4.ip_forward"); err != nil || v != "1" {
		t.Fatalf("sysctl reads %q, %v", v, err)
	}
	if err := a.Tap("tap0"); err != nil {
		t.Fatal(err)
	}
	// A process that nobody ends must not keep the host alive.
	sleeper := exec.Command("sleep", "600")
	if err := b.Start(sleeper); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := sleeper.Wait(); !errors.As(err, &exit) {
		t.Fatalf("the process inside ended with %v, want a kill", err)
	}
	if _, err := os.Stat(a.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is still there: %v", a.Path(), err)
	}
}

func TestSweepRemovesTheDeadOnly(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	left, err := New(strings.Join([]string{"nssweep", strconv.Itoa(dead.Process.Pid), "1", "gw"}, "-"))
	if err != nil {
		t.Fatal(err)
	}
	left.handle.Close()
	l, err := NewLab("nssweep")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Stat(left.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left-over namespace survives the sweep: %v", err)
	}
	own, err := l.Host("gw")
	if err != nil {
		t.Fatal(err)
	}
	if err := Sweep("nssweep"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(own.Path()); err != nil {
		t.Errorf("sweep removed a living process's namespace: %v", err)
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", "../etc", "A", "-a", "a/b", strings.Repeat("a", 62)} {
		if h, err := New(name); err == nil {
			h.Close()
			t.Errorf("name %q was accepted", name)
		}
	}
}
