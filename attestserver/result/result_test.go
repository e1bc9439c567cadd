package result

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newKey(t testing.TB) (ed25519.PrivateKey, ed25519.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

func facts(state verdict.State, tier protocol.Tier, findings ...protocol.Finding) Facts {
	v := verdict.Verdict{Session: strings.Repeat("a", 26), State: state, Tier: tier, Reason: "evidence-accepted",
		Challenges: 9, Evidence: [32]byte{1, 2}, NotAfter: now.Add(20 * time.Second), Warnings: []string{"w"}}
	for _, f := range findings {
		v.Findings = append(v.Findings, verdict.Finding{Finding: f, Time: now, Sequence: 3})
	}
	return Facts{Now: now, Life: time.Minute, Verdict: v, Posture: "card-theft", Policy: "default", Image: "hpc", ImageVersion: 3,
		Nonce: []byte("a nonce of somebody"), Context: "before:task-1", LogOrigin: "o", LogEntries: 18,
		Asked: &Asked{Own: make([]byte, 32), Nonces: []Bytes{[]byte("a nonce of somebody")}}}
}

func tokens(t testing.TB, c *Claims, key ed25519.PrivateKey) map[string][]byte {
	t.Helper()
	jwt, err := c.JWT(key)
	if err != nil {
		t.Fatal(err)
	}
	cwt, err := c.CWT(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"JWT": []byte(jwt), "CWT": cwt}
}

func reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	if err != nil {
		return "untyped: " + err.Error()
	}
	return ""
}

func TestTokensSayTheSameInBothForms(t *testing.T) {
	key, public := newKey(t)
	c := Build(facts(verdict.Suspect, protocol.TierSoftware, protocol.Finding{Probe: "procs", Reason: "procs-unknown-executable", Detail: "/x", Class: protocol.Fatal}))
	for name, token := range tokens(t, c, key) {
		got, err := Verify(token, public, now, []byte("a nonce of somebody"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, c) {
			t.Errorf("%s: %+v\nwant %+v", name, got, c)
		}
	}
}

// Invariant 10: what is claimed is bounded by the tier.
func TestInvariant10_StatusIsBoundedByTheTier(t *testing.T) {
	patched := protocol.Finding{Probe: "ktext", Reason: "ktext-changed", Class: protocol.Fatal}
	late := protocol.Finding{Probe: "evidence", Reason: "evidence-late", Class: protocol.Soft}
	for _, c := range []struct {
		state    verdict.State
		tier     protocol.Tier
		findings []protocol.Finding
		want     Status
	}{
		{verdict.Trusted, protocol.TierSoftware, nil, StatusWarning},
		{verdict.Trusted, protocol.TierTPM, nil, StatusAffirming},
		{verdict.Trusted, protocol.TierTEE, nil, StatusAffirming},
		{verdict.Suspect, protocol.TierTPM, []protocol.Finding{late}, StatusWarning},
		{verdict.Suspect, protocol.TierTPM, []protocol.Finding{patched}, StatusContraindicated},
		{verdict.Quarantined, protocol.TierSoftware, []protocol.Finding{patched}, StatusContraindicated},
		{verdict.Quarantined, protocol.TierSoftware, nil, StatusContraindicated},
		{verdict.Unknown, protocol.TierSoftware, nil, StatusNone},
		{verdict.Enrolling, protocol.TierSoftware, nil, StatusNone},
	} {
		built := Build(facts(c.state, c.tier, c.findings...))
		pc := built.Submods[SubmodPC]
		if pc.Status != c.want {
			t.Errorf("%v at %s: %v, want %v", c.state, c.tier, pc.Status, c.want)
		}
		if err := built.check(); err != nil {
			t.Errorf("%v at %s: %v", c.state, c.tier, err)
		}
		if c.tier == protocol.TierSoftware && pc.Vector != nil && (pc.Vector.Hardware != nil && *pc.Vector.Hardware == affirming || pc.Vector.Identity != nil) {
			t.Errorf("%v at T0 claims something of the hardware", c.state)
		}
		if built.Submods[SubmodGateway].Status != StatusNone || pc.PC.Means == "" {
			t.Error("the gateway has judged itself, or the tier is not explained")
		}
	}
}

func TestAttack_TokensThatAreNotBelieved(t *testing.T) {
	key, public := newKey(t)
	other, _ := newKey(t)
	nonce := []byte("a nonce of somebody")
	honest := Build(facts(verdict.Trusted, protocol.TierSoftware))
	for name, token := range tokens(t, honest, key) {
		if _, err := Verify(token, public, now.Add(20*time.Second), nonce); reason(err) != ReasonExpired {
			t.Errorf("%s after its time: %v", name, err)
		}
		if _, err := Verify(token, public, now.Add(-2*clockSkew), nonce); reason(err) != ReasonFuture {
			t.Errorf("%s of the future: %v", name, err)
		}
		for i := range nonce {
			n := bytes.Clone(nonce)
			n[i] ^= 1
			if _, err := Verify(token, public, now, n); reason(err) != ReasonNonce {
				t.Errorf("%s with another nonce: %v", name, err)
			}
		}
		for i := range token {
			changed := bytes.Clone(token)
			changed[i] ^= 1
			if _, err := Verify(changed, public, now, nonce); err == nil {
				t.Fatalf("%s: byte %d changed, and believed", name, i)
			} else if strings.HasPrefix(reason(err), "untyped") {
				t.Fatal(reason(err))
			}
		}
	}
	for name, token := range tokens(t, honest, other) {
		if _, err := Verify(token, public, now, nonce); reason(err) != ReasonSignature {
			t.Errorf("%s of another gateway: %v", name, err)
		}
	}
	// Claims that no gateway of ours makes, rightly signed.
	for what, change := range map[string]func(*Claims){
		"affirming at T0":       func(c *Claims) { a := c.Submods[SubmodPC]; a.Status = StatusAffirming; c.Submods[SubmodPC] = a },
		"better than its claim": func(c *Claims) { *c.Submods[SubmodPC].Vector.Executables = contraindicated },
		"another profile":       func(c *Claims) { c.Profile = "x" },
		"no PC":                 func(c *Claims) { delete(c.Submods, SubmodPC) },
		"no gateway":            func(c *Claims) { delete(c.Submods, SubmodGateway) },
	} {
		c := Build(facts(verdict.Trusted, protocol.TierSoftware))
		change(c)
		for name, token := range tokens(t, c, key) {
			if _, err := Verify(token, public, now, nonce); reason(err) != ReasonMalformed {
				t.Errorf("%s %s: %v", name, what, err)
			}
		}
	}
	// A token without signature, and one whose algorithm is the verifier's to choose.
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	payload, err := json.Marshal(honest)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{
		part(`{"alg":"none"}`) + "." + part(string(payload)) + ".",
		part(`{"alg":"HS256"}`) + "." + part(string(payload)) + "." + part(strings.Repeat("x", 32)),
		"", strings.Repeat("a", MaxToken+1), "a.b", "\xd2",
	} {
		if _, err := Verify([]byte(token), public, now, nonce); reason(err) != ReasonMalformed {
			t.Errorf("%.40q: %v", token, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	key, public := newKey(f)
	for _, token := range tokens(f, Build(facts(verdict.Trusted, protocol.TierTPM)), key) {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token []byte) {
		c, err := Verify(token, public, now, nil)
		if (c == nil) == (err == nil) || strings.HasPrefix(reason(err), "untyped") {
			t.Fatalf("%v, %v", c, err)
		}
	})
}

// FuzzClaims decodes what a hostile gateway could sign.
func FuzzClaims(f *testing.F) {
	key, public := newKey(f)
	payload, err := encode.Marshal(Build(facts(verdict.Trusted, protocol.TierTPM)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		var c Claims
		if decode.Unmarshal(payload, &c) != nil || c.check() != nil {
			return
		}
		token, err := c.CWT(key)
		if err != nil {
			return
		}
		if _, err := Verify(token, public, now, nil); strings.HasPrefix(reason(err), "untyped") {
			t.Fatal(err)
		}
	})
}

func BenchmarkJWT(b *testing.B) {
	key, _ := newKey(b)
	c := Build(facts(verdict.Trusted, protocol.TierSoftware))
	for b.Loop() {
		if _, err := c.JWT(key); err != nil {
			b.Fatal(err)
		}
	}
}
