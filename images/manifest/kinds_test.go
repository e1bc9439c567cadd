package manifest

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"testing"

	"portcullis/internal/strictjson"
)

// An envelope of one kind does not pass as another, whoever signed it.
func TestEnvelopeKindsAreApart(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	trust := Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{public}}
	const kind = "application/vnd.portcullis.example+json"
	data, err := SignPayload(kind, []byte("{}"), private)
	if err != nil {
		t.Fatal(err)
	}
	if payload, err := OpenPayload(kind, data, trust); err != nil || string(payload) != "{}" {
		t.Fatalf("%q %v", payload, err)
	}
	reason := func(err error) string {
		var e *Error
		errors.As(err, &e)
		if e == nil {
			t.Fatalf("no typed refusal: %v", err)
		}
		return e.Reason
	}
	if _, err := OpenPayload("application/vnd.portcullis.other+json", data, trust); reason(err) != ReasonMalformed {
		t.Errorf("as another kind: %v", err)
	}
	// The outer type changed too: then the signature does not hold.
	e, err := openEnvelope(data, kind)
	if err != nil {
		t.Fatal(err)
	}
	e.PayloadType = PayloadType
	renamed, err := strictjson.Compact(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPayload(PayloadType, renamed, trust); reason(err) != ReasonSignature {
		t.Errorf("renamed: %v", err)
	}
	two := Trust{Threshold: 2, ReleaseKeys: []ed25519.PublicKey{public, make([]byte, 32)}}
	two.ReleaseKeys[1][0] = 9
	if _, err := OpenPayload(kind, data, two); reason(err) != ReasonThreshold {
		t.Errorf("one of two signatures: %v", err)
	}
	if _, err := OpenPayload(kind, data, Trust{}); reason(err) != ReasonTrust {
		t.Errorf("nobody trusted: %v", err)
	}
	if _, err := SignPayload(kind, []byte("{}")); reason(err) != ReasonThreshold {
		t.Errorf("no signer: %v", err)
	}
}

// Only the dates are left out where a clock is not needed.
func TestOpenUndatedLeavesOutTheDatesOnly(t *testing.T) {
	m := sample()
	payload, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	data, trust := signRaw(t, payload)
	if v, err := OpenUndated(data, trust, m.Version); err != nil || v.Version != m.Version {
		t.Errorf("%v", err)
	}
	var e *Error
	if _, err := OpenUndated(data, trust, m.Version+1); !errors.As(err, &e) || e.Reason != ReasonVersion {
		t.Errorf("older: %v", err)
	}
	if _, err := OpenUndated(data, Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{make([]byte, 31)}}, 0); err == nil {
		t.Error("nobody's image was opened")
	}
}
