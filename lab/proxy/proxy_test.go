package proxy

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"testing"

	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
)

// held is an agent's key as the process of TestHelperHoldsAKey has it.
var held *claim.Key

// TestHelperHoldsAKey is the process whose memory is read: it has a key, its certificate
// and an epoch, tells the key's public half, and waits.
func TestHelperHoldsAKey(t *testing.T) {
	if os.Getenv("PROXY_TEST_HOLD") == "" {
		return
	}
	var err error
	if held, err = claim.NewKey(); err != nil {
		t.Fatal(err)
	}
	held.Advance(protocol.OldEpoch(7, [32]byte{1, 2, 3}))
	config, err := protocol.ClientConfig(held.Private(), held.Public())
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout.Write(held.Public())
	io.ReadAll(os.Stdin)
	if len(config.Certificates) == 0 {
		t.Error("no certificate")
	}
}

// Who can read the agent's memory has its key and its epoch.
func TestAttack_KeyOutOfMemory(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperHoldsAKey$")
	cmd.Env = append(os.Environ(), "PROXY_TEST_HOLD=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	public := make([]byte, 32)
	if _, err := io.ReadFull(out, public); err != nil {
		t.Fatal(err)
	}
	key, err := stolenKey(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key.Public(), public) || !key.Epoch().Same(protocol.OldEpoch(7, [32]byte{1, 2, 3})) {
		t.Errorf("key %x, epoch %d", key.Public(), key.Epoch().Number)
	}
	if _, err := stolenKey(os.Getpid()); err == nil {
		t.Error("a key in a process that has none")
	}
}

func TestMemory(t *testing.T) {
	m := memory{0x1000: binary.LittleEndian.AppendUint64([]byte("abcdefgh"), 7)}
	if got := m.find([]byte("abcd")); len(got) != 1 || got[0] != 0x1000 {
		t.Errorf("%#x", got)
	}
	if got := m.find([]byte("bcd")); len(got) > 0 { // not at a multiple of 8
		t.Errorf("%#x", got)
	}
	for _, c := range []struct {
		at uint64
		n  int
		ok bool
	}{{0x1000, 16, true}, {0x1008, 8, true}, {0x1008, 9, false}, {0xfff, 1, false}, {0x1010, 1, false}, {1<<64 - 1, 8, false}} {
		if got := m.at(c.at, c.n); (got != nil) != c.ok {
			t.Errorf("%d bytes at %#x: %x", c.n, c.at, got)
		}
	}
}

// A file is taken once, and when it is whole.
func TestPutAndTake(t *testing.T) {
	name := t.TempDir() + "/question"
	written := make(chan error, 1)
	go func() { written <- put(name, proxied{Binding: []byte{1}}) }()
	b, err := take(t.Context(), name)
	if err != nil || string(b) != `{"binding":"AQ==","challenge":null}` {
		t.Errorf("%s %v", b, err)
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("it is still there")
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}
