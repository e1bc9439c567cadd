package manifest_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
)

func reasonOf(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var e *manifest.Error
	if !errors.As(err, &e) {
		t.Fatalf("the error has no typed reason: %v", err)
	}
	return e.Reason
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func sign(t *testing.T, m manifest.Manifest, keys ...ed25519.PrivateKey) []byte {
	t.Helper()
	data, err := manifest.Sign(m, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys[1:] {
		if data, err = manifest.Cosign(data, k); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

func TestOpenAcceptsWhatSignMade(t *testing.T) {
	im := manifesttest.New(t, nil)
	data, err := os.ReadFile(filepath.Join(im.Dir, manifest.Envelope))
	if err != nil {
		t.Fatal(err)
	}
	v, err := manifest.Open(data, im.Trust, im.Now, 7)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := manifest.Encode(im.Manifest)
	got, _ := manifest.Encode(v.Manifest)
	if !bytes.Equal(want, got) {
		t.Fatalf("the manifest changed on its way:\n%s\n%s", want, got)
	}
	again := sign(t, im.Manifest, im.ReleaseKey)
	if !bytes.Equal(again, data) {
		t.Fatal("signing the same manifest twice gives different bytes")
	}
	for _, a := range v.Artefacts {
		f, err := os.Open(filepath.Join(im.Dir, a.Name))
		if err != nil {
			t.Fatal(err)
		}
		if err := manifest.CheckArtefact(a, f); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}

func TestSignAtOnceEqualsCosigning(t *testing.T) {
	a, b := manifesttest.Key("a"), manifesttest.Key("b")
	m := manifesttest.Manifest()
	atOnce, err := manifest.Sign(m, b, a)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(atOnce, sign(t, m, a, b)) {
		t.Fatal("the order of the signers changes the envelope")
	}
	if _, err := manifest.Sign(m, a, a); reasonOf(t, err) != manifest.ReasonMalformed {
		t.Fatalf("the same signer twice: %v", err)
	}
	if _, err := manifest.Sign(m); reasonOf(t, err) != manifest.ReasonThreshold {
		t.Fatalf("no signer: %v", err)
	}
}

// Every row is an image somebody could try to bring in; none may be accepted.
func TestInvariant11_OpenRefusesWithATypedReason(t *testing.T) {
	a, b, c, stranger := manifesttest.Key("a"), manifesttest.Key("b"), manifesttest.Key("c"), manifesttest.Key("stranger")
	m := manifesttest.Manifest()
	now := m.NotBefore.Add(time.Hour)
	trust := manifest.Trust{Threshold: 2, ReleaseKeys: []ed25519.PublicKey{public(a), public(b), public(c)}, GatewayKey: public(c)}
	good := sign(t, m, a, b)
	if _, err := manifest.Open(good, trust, now, 0); err != nil {
		t.Fatal(err)
	}
	payload, _ := manifest.Encode(m)
	// repay signs nothing: it puts another payload under the signatures of good.
	repay := func(p []byte) []byte {
		return bytes.Replace(good, []byte(base64.StdEncoding.EncodeToString(payload)), []byte(base64.StdEncoding.EncodeToString(p)), 1)
	}
	one := func(t manifest.Trust) manifest.Trust { t.Threshold = 1; return t }

	for _, row := range []struct {
		name  string
		data  []byte
		trust manifest.Trust
		now   time.Time
		floor uint64
		want  string
	}{
		{"only strangers signed", sign(t, m, stranger), trust, now, 0, manifest.ReasonSignature},
		{"one signature of two needed", sign(t, m, a), trust, now, 0, manifest.ReasonThreshold},
		{"one signature and one of a stranger", sign(t, m, a, stranger), trust, now, 0, manifest.ReasonThreshold},
		{"payload exchanged under good signatures", repay(bytes.Replace(payload, []byte(`"version":7`), []byte(`"version":8`), 1)), trust, now, 0, manifest.ReasonSignature},
		{"a bit of one of two signatures flipped", flipSignature(good), one(trust), now, 0, manifest.ReasonSignature},
		{"rollback to an older version", good, trust, now, 8, manifest.ReasonVersion},
		{"before its time", good, trust, m.NotBefore.Add(-time.Second), 0, manifest.ReasonNotYet},
		{"after its time", good, trust, m.NotAfter, 0, manifest.ReasonExpired},
		{"empty", nil, trust, now, 0, manifest.ReasonMalformed},
		{"over the cap", bytes.Repeat([]byte("a"), manifest.MaxEnvelope+1), trust, now, 0, manifest.ReasonSize},
		{"data behind the end", append(bytes.Clone(good), '{'), trust, now, 0, manifest.ReasonMalformed},
		{"white space", append(bytes.Clone(good), '\n'), trust, now, 0, manifest.ReasonMalformed},
		{"signatures removed", []byte(`{"payloadType":"` + manifest.PayloadType + `","payload":"e30=","signatures":[]}`), trust, now, 0, manifest.ReasonSignature},
		{"another payload type", bytes.Replace(good, []byte("manifest.v1"), []byte("manifest.v2"), 1), trust, now, 0, manifest.ReasonMalformed},
		{"unknown field in the envelope", bytes.Replace(good, []byte(`{"payloadType"`), []byte(`{"x":1,"payloadType"`), 1), trust, now, 0, manifest.ReasonMalformed},
		{"a key counted twice by doubling its signature", doubleSignature(t, m, a), trust, now, 0, manifest.ReasonMalformed},
		{"threshold 0", good, manifest.Trust{ReleaseKeys: trust.ReleaseKeys}, now, 0, manifest.ReasonTrust},
		{"zero trust", good, manifest.Trust{}, now, 0, manifest.ReasonTrust},
		{"the same release key twice in the trust", sign(t, m, a), manifest.Trust{Threshold: 2, ReleaseKeys: []ed25519.PublicKey{public(a), public(a)}}, now, 0, manifest.ReasonTrust},
	} {
		t.Run(row.name, func(t *testing.T) {
			v, err := manifest.Open(row.data, row.trust, row.now, row.floor)
			if got := reasonOf(t, err); got != row.want || v != nil {
				t.Fatalf("reason %q, want %q (%v)", got, row.want, err)
			}
		})
	}
}

func flipSignature(good []byte) []byte {
	b := bytes.Clone(good)
	i := bytes.LastIndex(b, []byte(`"sig":"`)) + len(`"sig":"`)
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return b
}

func doubleSignature(t *testing.T, m manifest.Manifest, k ed25519.PrivateKey) []byte {
	s := string(sign(t, m, k))
	i := strings.Index(s, `{"keyid"`)
	entry := strings.TrimSuffix(s[i:], "]}")
	return []byte(s[:i] + entry + "," + entry + "]}")
}
