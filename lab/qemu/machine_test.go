package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/internal/netns"
)

// TestEachFirmwareAsksItsOwnWay powers a machine on with each firmware and reads
// its first DHCPDISCOVER off the tap: the client class (option 60) and, for
// iPXE, the user class (option 77) are what pxed decides on.
func TestEachFirmwareAsksItsOwnWay(t *testing.T) {
	for _, c := range []struct {
		firmware Firmware
		class    string
		ipxe     bool
	}{
		{UEFIHTTP, "HTTPClient:Arch:00016", false},
		{UEFIPXE, "PXEClient:Arch:00007", false},
		{IPXE, "PXEClient:Arch:00007", true},
		{BIOS, "PXEClient:Arch:00000", true},
	} {
		t.Run(string(c.firmware), func(t *testing.T) {
			gw := netns.ForTest(t, "gw")[0]
			if err := gw.Tap("pc0"); err != nil {
				t.Fatal(err)
			}
			frames := sniff(t, gw, "pc0")
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			m, err := Start(ctx, Config{Name: "test", Dir: t.TempDir(), Firmware: c.firmware, MAC: "52:54:00:00:00:01",
				Tap: "pc0", MemoryMB: 1024, CPUs: 1, Start: gw.Start})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Kill()
			for {
				select {
				case f := <-frames:
					if !bytes.Contains(f, []byte{0x63, 0x82, 0x53, 0x63, 53, 1, 1}) {
						continue
					}
					if !bytes.Contains(f, []byte(c.class)) {
						t.Fatalf("DISCOVER has no class %s: %q", c.class, f)
					}
					if got := bytes.Contains(f, []byte("\x4d\x04iPXE")); got != c.ipxe {
						t.Fatalf("user class iPXE present: %t, want %t", got, c.ipxe)
					}
					return
				case <-m.Done():
					t.Fatal("QEMU ended")
				case <-ctx.Done():
					t.Fatal("no DISCOVER in two minutes; console: " + tail(SerialLog(m.cfg.Dir)))
				}
			}
		})
	}
}

// sniff delivers every frame that arrives on an interface of h.
func sniff(t *testing.T, h *netns.Host, link string) <-chan []byte {
	t.Helper()
	index, err := h.Index(link)
	if err != nil {
		t.Fatal(err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	var fd int
	if err := h.Do(func() error {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index})
	}); err != nil {
		t.Fatal(err)
	}
	// A short receive time-out lets the reader notice the end of the test.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}); err != nil {
		t.Fatal(err)
	}
	out := make(chan []byte, 256)
	end := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			select {
			case <-end:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(fd, b, 0); err == nil {
				select {
				case out <- bytes.Clone(b[:n]):
				default:
				}
			}
		}
	}()
	t.Cleanup(func() { close(end); <-done; unix.Close(fd) })
	return out
}

func TestQMPAnswersRefusesAndTellsEvents(t *testing.T) {
	gw := netns.ForTest(t, "gw")[0]
	if err := gw.Tap("pc0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, err := Start(ctx, Config{Name: "test", Dir: t.TempDir(), Firmware: UEFIHTTP, MAC: "52:54:00:00:00:01", Tap: "pc0",
		MemoryMB: 1024, CPUs: 1, TPM: true, Start: gw.Start})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	raw, err := m.QMP().Execute(ctx, "query-status", nil)
	var status struct{ Running bool }
	if err != nil || json.Unmarshal(raw, &status) != nil || !status.Running {
		t.Fatalf("query-status: %s, %v", raw, err)
	}
	if _, err := m.QMP().Execute(ctx, "no-such-command", nil); err == nil || !strings.Contains(err.Error(), "CommandNotFound") {
		t.Fatalf("an unknown command ended with %v", err)
	}
	if raw, err = m.QMP().Execute(ctx, "query-tpm", nil); err != nil || !strings.Contains(string(raw), "tpm-crb") {
		t.Fatalf("query-tpm: %s, %v", raw, err)
	}
	if err := m.AddNIC(ctx, "52:54:00:00:00:99"); err != nil {
		t.Fatalf("second card: %v", err)
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	for e := range m.QMP().Events() {
		if e.Name == "RESET" {
			break
		}
	}
	tpm := m.tpm
	m.Kill()
	for name, done := range map[string]<-chan struct{}{"qemu": m.Done(), "swtpm": tpm.done} {
		select {
		case <-done:
		default:
			t.Errorf("%s survives Kill", name)
		}
	}
	if _, err := m.QMP().Execute(ctx, "query-status", nil); err == nil {
		t.Error("a dead machine answers")
	}
}

func TestUnknownFirmwareIsRefused(t *testing.T) {
	if _, err := ParseFirmware("coreboot"); err == nil {
		t.Fatal("accepted")
	}
	for _, f := range Firmwares {
		if got, err := ParseFirmware(string(f)); err != nil || got != f {
			t.Errorf("%s: %q, %v", f, got, err)
		}
	}
}

func TestCommandLineHasNoKVMAndEscapesCommas(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a,b")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	args, err := Args(Config{Name: "x", Dir: dir, Firmware: UEFIPXE, MAC: "52:54:00:00:00:01", Tap: "pc0", MemoryMB: 1024, CPUs: 2})
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(args, " ")
	if strings.Contains(line, "kvm") || !strings.Contains(line, "-accel tcg") {
		t.Errorf("acceleration: %s", line)
	}
	if !strings.Contains(line, "a,,b/serial.log") || strings.Contains(strings.ReplaceAll(line, "a,,b", ""), "a,b") {
		t.Errorf("comma in a path is not escaped: %s", line)
	}
	if !strings.Contains(line, "romfile= ") && !strings.HasSuffix(line, "romfile=") && !strings.Contains(line, "romfile= -") {
		t.Errorf("the card's option ROM is not left out: %s", line)
	}
}
