package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/pxe/dhcp"
	"portcullis/pxe/ledger"
	"portcullis/pxe/session"
	"portcullis/pxe/tftp"
)

// tool fails the test with the package to install.
func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: apt install %s", name, pkg)
	}
	return path
}

// udhcpc runs busybox's DHCP client on the PC as class and returns what it was given.
func (b *bench) udhcpc(class string, args ...string) map[string]string {
	b.t.Helper()
	dir := b.t.TempDir()
	script, result := filepath.Join(dir, "script"), filepath.Join(dir, "env")
	text := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = bound ] && env > %s\nexit 0\n", result)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		b.t.Fatal(err)
	}
	args = append([]string{"udhcpc", "-i", pcIface, "-f", "-n", "-q", "-t", "5", "-T", "2", "-V", class, "-s", script}, args...)
	if out, err := b.pc.Run(context.Background(), tool(b.t, "busybox", "busybox"), args...); err != nil {
		b.t.Fatalf("udhcpc: %v\n%s", err, out)
	}
	env, err := os.ReadFile(result)
	if err != nil {
		b.t.Fatal(err)
	}
	got := map[string]string{}
	for _, line := range strings.Split(string(env), "\n") {
		k, v, _ := strings.Cut(line, "=")
		got[k] = v
	}
	return got
}

// curl fetches url on the PC into a file.
func (b *bench) curl(file, url string, args ...string) error {
	b.t.Helper()
	args = append([]string{"-sS", "--fail", "--noproxy", "*", "--max-time", "30", "-o", file, url}, args...)
	out, err := b.pc.Run(context.Background(), tool(b.t, "curl", "curl"), args...)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func TestRealClientsBootOverHTTP(t *testing.T) {
	b := newBench(t, "")
	b.start()
	got := b.udhcpc("HTTPClient:Arch:00016:UNDI:003000", "-x", "0x5d:0010", "-O", "bootfile")
	if got["ip"] != pcAddress.String() || got["serverid"] != piPrefix.Addr().String() || got["mask"] != "24" || got["lease"] != "43200" {
		t.Fatalf("udhcpc was given %v", got)
	}
	url := got["boot_file"]
	sid := strings.Split(url, "/")[4]
	b.lease()
	file := filepath.Join(t.TempDir(), "hpc.efi")
	if err := b.curl(file, url); err != nil {
		t.Fatal(err)
	}
	b.same(file, manifest.UKI)
	// As hpc-init does: its own class, and a download that is taken up again.
	agent := b.udhcpc(dhcp.AgentClass, "-O", "bootfile", "-O", "0xe0")
	if agent["bootfile"] != b.url(sid, "") || agent["opt224"] != hex.EncodeToString([]byte(sid)) {
		t.Errorf("the image's client was given %q and %q", agent["bootfile"], agent["opt224"])
	}
	root := filepath.Join(t.TempDir(), "root.img")
	if err := b.curl(root, b.url(sid, manifest.Root), "-r", "0-1499999"); err != nil {
		t.Fatal(err)
	}
	if err := b.curl(root, b.url(sid, manifest.Root), "-C", "-"); err != nil {
		t.Fatal(err)
	}
	b.same(root, manifest.Root)
	b.events.wait(t, "session.served", 1)
	if r := b.claim(sid, newKey(t), 0); !r.Accepted {
		t.Error(r.Reason)
	}
	if v, err := ledger.Verify(ledger.Path(b.state)); err != nil || !v.OK {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestRealClientBootsOverTFTP(t *testing.T) {
	b := newBench(t, "")
	b.start()
	got := b.udhcpc("PXEClient:Arch:00007:UNDI:003000", "-x", "0x5d:0007", "-O", "bootfile", "-O", "tftp")
	if got["siaddr"] != piPrefix.Addr().String() || got["tftp"] != piPrefix.Addr().String() {
		t.Fatalf("udhcpc was given %v", got)
	}
	b.lease()
	for _, block := range []string{"512", "1468"} {
		file := filepath.Join(t.TempDir(), "hpc.efi")
		if err := b.curl(file, "tftp://"+got["siaddr"]+"/"+got["boot_file"], "--tftp-blksize", block); err != nil {
			t.Fatal(err)
		}
		b.same(file, manifest.UKI)
	}
	if err := b.curl(filepath.Join(t.TempDir(), "x"), "tftp://"+got["siaddr"]+"/autoexec.ipxe"); err == nil {
		t.Error("a name from nowhere was served")
	}
	s := b.newest()
	if s.Firmware != string(session.UEFIPXE) || s.Artefacts[0].Transport != ledger.TFTP || s.Artefacts[0].Covered != s.Artefacts[0].Size {
		t.Errorf("%v", s)
	}
}

func (b *bench) same(file, name string) {
	b.t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, b.image.Content[name]) {
		b.t.Fatalf("%s: %d bytes differ from the image's, %v", name, len(got), err)
	}
}

// TestInvariant05_ClaimsAgainstAWholeServer: late, early, second and foreign
// claims, over the socket that attestd uses.
func TestInvariant05_ClaimsAgainstAWholeServer(t *testing.T) {
	b := newBench(t, "  claim_window: 1s\n")
	b.start()
	c := b.pcSocket(dhcp.PortClient)
	sid := sessionOf(t, b.discover(c, 1, asHTTP))
	b.lease()
	if r := b.claim(sid, newKey(t), 0); r.Accepted || r.Reason != session.ReasonIncomplete {
		t.Errorf("before anything was fetched: %v", r)
	}
	b.fetchAll(sid)
	if r := b.claim(strings.Repeat("a", 26), newKey(t), 0); r.Accepted || r.Reason != session.ReasonUnknown {
		t.Errorf("another session: %v", r)
	}
	if r := b.claim(sid, newKey(t), time.Hour); r.Accepted || r.Reason != session.ReasonUptime {
		t.Errorf("an old kernel: %v", r)
	}
	if r := b.claim(sid, nil, 0); r.Accepted || r.Reason != session.ReasonKeyInvalid {
		t.Errorf("no key: %v", r)
	}
	key := newKey(t)
	if r := b.claim(sid, key, 0); !r.Accepted {
		t.Fatal(r.Reason)
	}
	if r := b.claim(sid, newKey(t), 0); r.Accepted || r.Reason != session.ReasonDouble || r.Session.State.String() != "SESSION_STATE_VOID" {
		t.Errorf("second claim: %v", r)
	}
	b.events.wait(t, "claim.double", 1)
	next := sessionOf(t, b.discover(c, 2, asHTTP))
	b.fetchAll(next)
	if r := b.claim(next, key, 0); r.Accepted || r.Reason != session.ReasonKeyUsed {
		t.Errorf("the key of the boot before: %v", r)
	}
	time.Sleep(1100 * time.Millisecond) // the window of this test
	if r := b.claim(next, newKey(t), 0); r.Accepted || r.Reason != session.ReasonLate {
		t.Errorf("late: %v", r)
	}
}

// TestInvariant11_HostileNeighbour: whatever the PC throws at the ports, an
// honest boot works afterwards.
func TestInvariant11_HostileNeighbour(t *testing.T) {
	b := newBench(t, "")
	b.start()
	c := b.pcSocket(dhcp.PortClient)
	sid := sessionOf(t, b.discover(c, 1, asHTTP))
	b.lease()
	var junk [][]byte
	for i := range 64 {
		junk = append(junk, bytes.Repeat([]byte{byte(i * 7)}, i*23))
	}
	for i := range 5_000 {
		raw := junk[i%len(junk)]
		c.WriteTo(raw, &net.UDPAddr{IP: net.IPv4bcast, Port: dhcp.PortServer})
		c.WriteTo(raw, &net.UDPAddr{IP: piPrefix.Addr().AsSlice(), Port: portTFTP})
	}
	for i := range 50 {
		conn, err := b.pc.Dial(context.Background(), "tcp4", "10.77.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(junk[i%len(junk)])
		conn.Close()
	}
	b.events.wait(t, "dhcp.drop", 1)
	for _, e := range append(b.events.named("dhcp.drop"), b.events.named("tftp.drop")...) {
		switch e["reason"] {
		case string(dhcp.ReasonMalformed), string(dhcp.ReasonQueue), tftp.ReasonMalformed, tftp.ReasonRate:
		default:
			t.Errorf("%v", e)
		}
	}
	// The junk's connections hold their places until the server has seen them go.
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, _, err := b.get(b.url(sid, manifest.UKI), "bytes=0-0"); err == nil {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("an honest connection is not taken any more")
		}
	}
	b.fetchAll(sid)
	if r := b.claim(sid, newKey(t), 0); !r.Accepted {
		t.Error(r.Reason)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			var kib int
			fmt.Sscan(f[1], &kib)
			if kib > 64<<10 {
				t.Errorf("%d KiB of memory at the most, 64 MiB are meant", kib)
			}
		}
	}
}
