package claim

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

func newKey(t *testing.T) *Key {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestInvariant09_EveryBootHasItsOwnKey(t *testing.T) {
	if newKey(t).Public().Equal(newKey(t).Public()) {
		t.Fatal("two keys are equal")
	}
}

func TestHardenLocksMemoryAndForbidsDumps(t *testing.T) {
	if err := Harden(); err != nil {
		t.Fatal(err)
	}
	defer unix.Munlockall()
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("dumpable %d, %v", dumpable, err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmLck:")
	locked, _, _ := strings.Cut(rest, "\n")
	if f := strings.Fields(locked); len(f) == 0 || f[0] == "0" {
		t.Errorf("locked memory: %q", locked)
	}
}

func TestClaimIsSignedForThisGatewayAndConnection(t *testing.T) {
	key := newKey(t)
	gateway := newKey(t).Public()
	hello := &protocol.Hello{Version: protocol.Version, Nonce: bytes.Repeat([]byte{3}, 32)}
	facts := Facts{Session: "aaaaaaaaaaaaaaaaaaaaaaaaaa", ManifestDigest: [32]byte{1}, RootHash: [32]byte{2}, Gateway: gateway}
	bind := func(nonce [32]byte) (protocol.Binding, error) { return protocol.Binding{nonce[0], 9}, nil }
	c, binding, err := New(facts, key, 1500*time.Millisecond, hello, bind)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil || c.UptimeMs != 1500 || binding != (protocol.Binding{c.Nonce[0], 9}) {
		t.Fatalf("%v, %v", c, err)
	}
	valid := func(gateway ed25519.PublicKey, nonce [32]byte, b protocol.Binding) bool {
		return ed25519.Verify(key.Public(), protocol.ClaimTranscript(c, gateway, nonce, b), c.Signature)
	}
	nonce := [32]byte(hello.Nonce)
	if !valid(gateway, nonce, binding) {
		t.Error("the signature does not hold")
	}
	if valid(newKey(t).Public(), nonce, binding) || valid(gateway, [32]byte{}, binding) || valid(gateway, nonce, protocol.Binding{}) {
		t.Error("the signature holds for another gateway, nonce or connection")
	}
	again, _, err := New(facts, key, 0, hello, bind)
	if err != nil || bytes.Equal(again.Nonce, c.Nonce) {
		t.Errorf("the same nonce twice (%v)", err)
	}
}

func TestNoBindingNoClaim(t *testing.T) {
	hello := &protocol.Hello{Version: protocol.Version, Nonce: make([]byte, 32)}
	_, _, err := New(Facts{}, newKey(t), 0, hello, func([32]byte) (protocol.Binding, error) {
		return protocol.Binding{}, protocol.ErrBinding
	})
	if !errors.Is(err, protocol.ErrBinding) {
		t.Errorf("got %v", err)
	}
	for _, hello := range []*protocol.Hello{nil, {}, {Version: protocol.Version + 1, Nonce: make([]byte, 32)}, {Version: protocol.Version, Nonce: make([]byte, 31)}} {
		_, _, err := New(Facts{}, newKey(t), 0, hello, func([32]byte) (protocol.Binding, error) {
			t.Error("asked for a binding")
			return protocol.Binding{}, nil
		})
		if !errors.Is(err, protocol.ErrMalformed) {
			t.Errorf("%v: %v", hello, err)
		}
	}
}

func TestUptimeRuns(t *testing.T) {
	a, err := Uptime()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Uptime()
	if err != nil || a <= 0 || b < a {
		t.Errorf("%v then %v, %v", a, b, err)
	}
}
