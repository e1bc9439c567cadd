package main

import (
	"bufio"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The test binary is attestd when it is told so.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_IS_ATTESTD") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func attestd(args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), "TEST_IS_ATTESTD=1")
	c.Stderr = os.Stderr
	return c
}

func configFile(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "attestd") // short, for the unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	key := base64.StdEncoding.EncodeToString(make([]byte, ed25519.PublicKeySize))
	yaml := fmt.Sprintf(`run_dir: %[1]s/run
state_dir: %[1]s/state
link:
  interface: lo
  address: 127.0.0.1/24
  pc_address: 127.0.0.2
  pc_mac: 52:54:00:12:34:56
pxe:
  image_dir: %[1]s/image
  release_keys: [%[2]q]
attest:
  port: %[3]d
  key_file: %[1]s/state/attestd/gateway.key
`, dir, key, l.Addr().(*net.TCPAddr).Port)
	file := filepath.Join(dir, "portcullis.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// start returns once attestd has said that it is ready.
func start(t *testing.T, file string) *exec.Cmd {
	t.Helper()
	c := attestd("--config", file)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"event":"ready"`) {
			go func() {
				for lines.Scan() {
				}
			}()
			return c
		}
	}
	t.Fatal("attestd ended without being ready")
	return nil
}

func TestInitKeyPrintsTheSameKeyEachTime(t *testing.T) {
	file := configFile(t)
	var keys []string
	for range 2 {
		out, err := attestd("--config", file, "--init-key").Output()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, strings.TrimSpace(string(out)))
	}
	if b, err := base64.StdEncoding.DecodeString(keys[0]); err != nil || len(b) != ed25519.PublicKeySize || keys[0] != keys[1] {
		t.Errorf("keys %q", keys)
	}
}

// It starts without pxed, gatewayd and image, again after kill -9, and ends
// with 0 on SIGTERM.
func TestStartsAloneSurvivesKillAndEndsOnSIGTERM(t *testing.T) {
	file := configFile(t)
	first := start(t, file)
	first.Process.Kill()
	first.Wait()
	second := start(t, file)
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// Several PCs: each has its address and its own state, and the log is one.
func TestStartsForSeveralPCs(t *testing.T) {
	file := configFile(t)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, "  pcs: [{name: rack-1, address: 127.0.0.5, mac: '52:54:00:00:00:01'}, {name: rack-2, address: 127.0.0.6, mac: '52:54:00:00:00:02'}]\n"...)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c := attestd("--config", file)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	ready := map[string]string{}
	lines := bufio.NewScanner(out)
	for len(ready) < 2 && lines.Scan() {
		var e struct{ Event, PC, Address string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if e.Event == "ready" {
			ready[e.PC] = e.Address
		}
	}
	go io.Copy(io.Discard, out)
	for name, host := range map[string]string{"rack-1": "127.0.0.5:", "rack-2": "127.0.0.6:"} {
		if !strings.HasPrefix(ready[name], host) {
			t.Fatalf("ready: %v", ready)
		}
		conn, err := net.Dial("tcp", ready[name])
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if _, err := os.Stat(filepath.Join(filepath.Dir(file), "state", "attestd", "pcs", name, "references")); err != nil {
			t.Error(err)
		}
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}
