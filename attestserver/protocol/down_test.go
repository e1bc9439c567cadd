package protocol

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
)

func TestDownHoldsForOneConnectionOnly(t *testing.T) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, otherKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	session, binding := strings.Repeat("a", 26), Binding{1}
	fresh := func() *Down { return NewDown(key, binding, [16]byte{7}, session, false) }
	if err := fresh().Verify(public, binding, session); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"another connection":  fresh().Verify(public, Binding{2}, session),
		"another session":     fresh().Verify(public, binding, strings.Repeat("b", 26)),
		"another gateway":     fresh().Verify(other, binding, session),
		"signed by the PC":    NewDown(otherKey, binding, [16]byte{7}, session, false).Verify(public, binding, session),
		"reboot made an off":  func() error { d := fresh(); d.Off = true; return d.Verify(public, binding, session) }(),
		"another action":      func() error { d := fresh(); d.Id[0]++; return d.Verify(public, binding, session) }(),
		"one bit of the seal": func() error { d := fresh(); d.Signature[9] ^= 1; return d.Verify(public, binding, session) }(),
	} {
		if !errors.Is(err, ErrDown) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, d := range map[string]*Down{"nothing": nil, "empty": {}, "short id": {Id: make([]byte, 15), Session: session, Signature: make([]byte, 64)},
		"bad session": {Id: make([]byte, 16), Session: "x", Signature: make([]byte, 64)}} {
		if err := d.Verify(public, binding, session); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
