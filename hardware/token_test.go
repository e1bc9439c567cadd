package hardware

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func exampleToken() *Token {
	return &Token{Type: TokenType, Keyslots: []string{"0"}, Version: TokenVersion, State: StateCommitted, Backend: BackendTPM2,
		Posture: PostureCardTheft, Platform: "self", Enrolled: "2026-11-22T03:02:00Z", Blob: json.RawMessage(`{"a":1}`)}
}

func TestTokenRoundTrip(t *testing.T) {
	b, err := exampleToken().Encode()
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseToken(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.Encode()
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("%v\n%s\n%s", err, b, again)
	}
}

func TestTokenRefusals(t *testing.T) {
	for name, change := range map[string]func(*Token){
		"type":             func(k *Token) { k.Type = "systemd-tpm2" },
		"version":          func(k *Token) { k.Version = 2 },
		"no version":       func(k *Token) { k.Version = 0 },
		"state":            func(k *Token) { k.State = "half" },
		"posture":          func(k *Token) { k.Posture = "safe" },
		"no keyslot":       func(k *Token) { k.Keyslots = nil },
		"two keyslots":     func(k *Token) { k.Keyslots = []string{"0", "1"} },
		"keyslot 32":       func(k *Token) { k.Keyslots = []string{"32"} },
		"keyslot -1":       func(k *Token) { k.Keyslots = []string{"-1"} },
		"keyslot 01":       func(k *Token) { k.Keyslots = []string{"01"} },
		"keyslot +1":       func(k *Token) { k.Keyslots = []string{"+1"} },
		"backend":          func(k *Token) { k.Backend = "softhsm" },
		"platform":         func(k *Token) { k.Platform = "u-boot" },
		"no blob":          func(k *Token) { k.Blob = nil },
		"blob is no JSON":  func(k *Token) { k.Blob = json.RawMessage("{") },
		"blob is nothing":  func(k *Token) { k.Blob = json.RawMessage("null") },
		"everything empty": func(k *Token) { *k = Token{} },
	} {
		k := exampleToken()
		change(k)
		if b, err := k.Encode(); err == nil {
			t.Errorf("%s: encoded as %s", name, b)
		}
		// The same again as somebody else would write it.
		b, err := json.Marshal(k)
		if err != nil {
			continue
		}
		if p, err := ParseToken(b); err == nil || p != nil {
			t.Errorf("%s: read as %+v", name, p)
		}
	}
	good, err := exampleToken().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty":       "",
		"unknown key": strings.Replace(string(good), `"version"`, `"more":1,"version"`, 1),
		"more behind": string(good) + "{}",
		"too large":   string(good) + strings.Repeat(" ", MaxToken),
		"array":       "[" + string(good) + "]",
	} {
		if p, err := ParseToken([]byte(b)); err == nil {
			t.Errorf("%s: read as %+v", name, p)
		}
	}
}

func TestEveryPostureAndBackendHasAToken(t *testing.T) {
	for _, p := range []Posture{PostureNone, PostureCardTheft, PostureSignedBoot, PostureSignedBootOTP, PostureFirmware} {
		if got, err := ParsePosture(string(p)); err != nil || got != p {
			t.Errorf("%q: %q, %v", p, got, err)
		}
		for _, b := range []Backend{BackendTPM2, BackendZymbit, BackendCombined, BackendFake} {
			k := exampleToken()
			k.Posture, k.Backend = p, b
			if _, err := k.Encode(); err != nil {
				t.Error(err)
			}
		}
	}
	for _, s := range []string{"", "None", "signed-boot ", "signed-boot+otp+more"} {
		if p, err := ParsePosture(s); err == nil {
			t.Errorf("%q is posture %q", s, p)
		}
	}
}

func TestReasonIsFoundThroughWrapping(t *testing.T) {
	inner := &Error{ReasonPolicy, errors.New("counter")}
	if r := ReasonOf(fmt.Errorf("unseal: %w", inner)); r != ReasonPolicy {
		t.Error(r)
	}
	if r := ReasonOf(&Error{ReasonLockout, inner}); r != ReasonLockout {
		t.Errorf("%s: the outer reason counts", r)
	}
	if r := ReasonOf(errors.New("plain")); r != ReasonFailed {
		t.Error(r)
	}
	if !errors.Is(&Error{ReasonBusy, inner}, inner) || !strings.HasPrefix(inner.Error(), "root-policy: ") {
		t.Error(inner)
	}
}

func TestDecodeStrict(t *testing.T) {
	var v struct {
		A int `json:"a"`
	}
	for s, ok := range map[string]bool{`{"a":1}`: true, ` {"a":1}` + "\n": true, `{"b":1}`: false, `{"a":1}{}`: false, `{"a":1} x`: false, ``: false, `{"a":"1"}`: false} {
		if err := DecodeStrict([]byte(s), &v); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	b, err := exampleToken().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"type":"portcullis-root"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseToken(b)
		if err != nil {
			return
		}
		again, err := k.Encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := ParseToken(again); err != nil && len(again) <= MaxToken {
			t.Errorf("what was written cannot be read: %v", err)
		}
	})
}
