package piscenario

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/lab/pi"
)

// module plays a Zymbit module outside of the machine: its key never enters the guest.
// It sleeps until its first call, as the real one does, and refuses what another
// module has locked, a machine that it does not know, and one that knows less than it did
// before, whose directory was lost.
type module struct {
	seal cipher.AEAD
	path string

	mu    sync.Mutex
	calls map[string]int // answered, by operation
	count int            // highest that it was told
}

// machine is the name under which modules and machine know each other.
const machine = "this-pi"

// bound is the directory of a machine that was bound in the vendor's way.
func bound(count string) *card.ZymbitState {
	return &card.ZymbitState{Files: []card.ZymbitFileEntry{
		{Name: "id", Mode: 0o600, Data: []byte(machine)},
		{Name: "state/count", Mode: 0o600, Data: []byte(count)},
	}}
}

func newModule(t *testing.T) *module {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	c, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	m := &module{calls: map[string]int{}}
	if m.seal, err = cipher.NewGCMWithRandomNonce(c); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "zk-")
	if err != nil {
		t.Fatal(err)
	}
	m.path = filepath.Join(dir, "module.sock")
	l, err := net.Listen("unix", m.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); os.RemoveAll(dir) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go m.power(c)
		}
	}()
	return m
}

// plugged puts the module into a machine.
func (m *module) plugged(c *pi.Config) { c.Module = m.path }

func (m *module) answered(op string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[op]
}

// power serves from the machine's power-on to its power-off.
func (m *module) power(c net.Conn) {
	defer c.Close()
	asleep := true
	for s := bufio.NewScanner(c); s.Scan(); {
		words := append(strings.Fields(s.Text()), "", "", "", "")
		op := words[0]
		arg, err := base64.StdEncoding.DecodeString(words[1])
		if err == nil {
			err = m.knows(words[2], words[3])
		}
		var out []byte
		switch {
		case asleep:
			asleep, err = false, fmt.Errorf("asleep")
		case err == nil:
			out, err = m.do(op, arg)
		}
		if err != nil {
			fmt.Fprintf(c, "no %v\n", err)
			continue
		}
		fmt.Fprintf(c, "ok %s\n", base64.StdEncoding.EncodeToString(out))
	}
}

func (m *module) knows(name, text string) error {
	count, err := strconv.Atoi(text)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil || name != machine:
		return fmt.Errorf("not-bound")
	case count <= m.count:
		return fmt.Errorf("state-lost")
	}
	m.count = count
	return nil
}

func (m *module) do(op string, arg []byte) (out []byte, err error) {
	switch op {
	case "random":
		n, err := strconv.Atoi(string(arg))
		if err != nil || n < 1 || n > 512 {
			return nil, fmt.Errorf("%q bytes", arg)
		}
		out = make([]byte, n)
		rand.Read(out)
	case "lock":
		out = m.seal.Seal(nil, nil, arg, nil)
	case "unlock":
		if out, err = m.seal.Open(nil, nil, arg, nil); err != nil {
			return nil, fmt.Errorf("not-mine")
		}
	default:
		return nil, fmt.Errorf("no operation %q", op)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[op]++
	return out, nil
}

// vendorDebs is a directory with a package that has the tools of who plays Zymbit. The
// same source gives the same package, so that images are built once.
func vendorDebs(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(builder.Repository, "build", "pi", "vendor")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tool := program(t, "./zymbittool")
	tree := t.TempDir()
	files := map[string][]byte{"DEBIAN/control": []byte("Package: zksaapps\nVersion: 1.0\nArchitecture: arm64\nMaintainer: nobody <nobody@example.invalid>\nDescription: test\n")}
	for _, name := range []string{"zkunlockifs", "zklockifs", "zkgrifs"} {
		files["sbin/"+name] = tool
	}
	for name, data := range files {
		if err := os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.Walk(tree, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, time.Unix(1700000000, 0), time.Unix(1700000000, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("dpkg-deb", "--build", "--root-owner-group", tree, filepath.Join(dir, "zksaapps.deb"))
	c.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb (package dpkg): %v: %s", err, out)
	}
	return dir
}
