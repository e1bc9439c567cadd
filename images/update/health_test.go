package update

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/internal/config"
)

func TestListenersOfTheKernelsList(t *testing.T) {
	for name, c := range map[string]struct {
		line, protocol, want string
	}{
		"listener":       {"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000", "tcp", "127.0.0.1:8080"},
		"connection":     {"   1: 0100007F:1F90 0100007F:1F91 01 00000000:00000000 00:00000000", "tcp", ""},
		"UDP":            {"  12: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000", "udp", "0.0.0.0:67"},
		"connected UDP":  {"  13: 0100007F:0043 0100007F:0044 01 00000000:00000000", "udp", ""},
		"headings":       {"  sl  local_address rem_address   st tx_queue", "tcp", ""},
		"short":          {"  0: 0100007F:1F90", "tcp", ""},
		"IPv6":           {"  0: 00000000000000000000000000000000:1F90 0:0 0A", "tcp", ""},
		"no hex address": {"  0: 0100007X:1F90 00000000:0000 0A", "tcp", ""},
	} {
		got, ok := listener(c.line, c.protocol)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s: %s %t", name, got, ok)
		}
	}
}

// The gate sees a port that is listened on, and one that is not.
func TestGateSeesRealPorts(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddr("127.0.0.1")
	port := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	tcpPort, udpPort := port(tcp.Addr()), port(udp.LocalAddr())
	both := []Check{listens("a", "tcp", own, tcpPort), listens("b", "udp", own, udpPort)}
	if missing := look(t.Context(), both); len(missing) != 0 {
		t.Error(missing)
	}
	if missing := look(t.Context(), []Check{listens("c", "tcp", netip.MustParseAddr("127.0.0.2"), tcpPort)}); len(missing) != 1 {
		t.Error("a listener on another address was counted")
	}
	tcp.Close()
	udp.Close()
	if missing := look(t.Context(), both); len(missing) != 2 {
		t.Error(missing)
	}
}

// A Pi on which nothing of ours runs passes no check that asks a service.
func TestGateWithoutServices(t *testing.T) {
	c := &config.Config{RunDir: t.TempDir()}
	c.Link.Address = netip.MustParsePrefix("10.77.77.1/24")
	c.PXE.HTTPPort, c.Attest.Port = 80, 7443
	missing := strings.Join(look(t.Context(), HealthChecks(c)[1:]), "\n")
	for _, name := range []string{"firewall", "gatewayd", "pxed", "attestd", "DHCP", "TFTP", "boot files", "attestation"} {
		if !strings.Contains(missing, name+": ") {
			t.Errorf("%s passes:\n%s", name, missing)
		}
	}
	c.Attest.Fleet = []config.Member{{Name: "rack-1", Address: netip.MustParseAddr("10.77.78.1")}, {Name: "rack-2", Address: netip.MustParseAddr("10.77.79.1")}}
	missing = strings.Join(look(t.Context(), HealthChecks(c)[1:]), "\n")
	for _, want := range []string{"firewall rack-1: ", "portcullis.rack-2", "pxed rack-1: ", "udp 10.77.78.1:67", "attestation rack-2: "} {
		if !strings.Contains(missing, want) {
			t.Errorf("no %q in:\n%s", want, missing)
		}
	}
	if n := len(HealthChecks(nil)); n != 1 {
		t.Errorf("%d checks without a configuration", n)
	}
}

func TestWatchdogOfTheFirstProcess(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/dev/null", filepath.Join(dir, "0")); err != nil {
		t.Fatal(err)
	}
	if err := watchdogFed(dir); err == nil {
		t.Error("no watchdog is open, and it passes")
	}
	if err := os.Symlink("/dev/watchdog0", filepath.Join(dir, "9")); err != nil {
		t.Fatal(err)
	}
	if err := watchdogFed(dir); err != nil {
		t.Error(err)
	}
}

func TestLockKeepsTheSecondAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	done, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); err == nil || !strings.HasPrefix(err.Error(), ReasonBusy) {
		t.Errorf("%v", err)
	}
	done()
	if done, err = Lock(path); err != nil {
		t.Error(err)
	} else {
		done()
	}
}

// What is over within two seconds draws nothing; a terminal gets one line, others plain ones.
func TestMeter(t *testing.T) {
	now := time.Unix(0, 0)
	for _, c := range []struct {
		terminal bool
		steps    int
		want     []string
		never    string
	}{
		{true, 1, nil, "write"},
		{true, 6, []string{"\rwrite  [####", " 50%  50 of 100 MB", "\n"}, "write \n"},
		{false, 6, []string{"write  40%  40 of 100 MB", "check  40%"}, "\r"},
	} {
		var out bytes.Buffer
		m := NewMeter(&out, c.terminal, func() time.Time { return now })
		for _, stage := range []string{StageWrite, StageCheck} {
			for i := range c.steps {
				m.Show(stage, int64(i)*10<<20, 100<<20)
				now = now.Add(time.Second / 2)
			}
			now = now.Add(time.Second / 2)
		}
		m.End()
		for _, w := range c.want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%+v: %q lacks %q", c, out.String(), w)
			}
		}
		if strings.Contains(out.String(), c.never) {
			t.Errorf("%+v: %q has %q", c, out.String(), c.never)
		}
	}
}
