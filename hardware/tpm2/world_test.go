package tpm2

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/hardware/tpmpolicy"
)

const testLabel = "luks"

// world is a chip, a policy key and what pi-init measures.
type world struct {
	chip    *tpmtest.Chip
	key     *ecdsa.PrivateKey
	boot    [32]byte
	cmdline string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{chip: tpmtest.Start(t), key: newPolicyKey(t), boot: sha256.Sum256([]byte("boot image")), cmdline: "portcullis.pi=1 roothash=00"}
}

func newPolicyKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// policy signs what a release of that sequence measures.
func (w *world) policy(t testing.TB, key *ecdsa.PrivateKey, sequence uint64) *tpmpolicy.File {
	t.Helper()
	pcrs := tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(w.boot, w.cmdline)...)
	f := &tpmpolicy.File{Version: tpmpolicy.FileVersion, Sequence: sequence}
	for _, p := range []tpmpolicy.Platform{tpmpolicy.PlatformSelf, tpmpolicy.PlatformEFI} {
		s, err := tpmpolicy.Sign(key, tpmpolicy.Branch{Platform: p, Sequence: sequence, PCRs: pcrs, NVIndex: DefaultCounter})
		if err != nil {
			t.Fatal(err)
		}
		f.Branches = append(f.Branches, s)
	}
	return f
}

func (w *world) config(t testing.TB, sequence uint64) Config {
	return Config{PolicyKey: &w.key.PublicKey, Platform: tpmpolicy.PlatformSelf, Policy: w.policy(t, w.key, sequence)}
}

func open(t testing.TB, path string, cfg Config) *TPM {
	t.Helper()
	c, err := Open(path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// boot reboots the chip and measures as pi-init does.
func (w *world) start(t testing.TB, cfg Config) *TPM {
	t.Helper()
	w.chip.Reboot(t)
	c := open(t, w.chip.Path, cfg)
	w.measure(t, c)
	return c
}

func (w *world) measure(t testing.TB, c *TPM) {
	t.Helper()
	for _, e := range tpmpolicy.SelfEvents(w.boot, w.cmdline) {
		if err := c.Extend(t.Context(), e.PCR, e.Data); err != nil {
			t.Fatal(err)
		}
	}
}

// sealed enrols release 5 and returns the secret and its blob.
func (w *world) sealed(t testing.TB) ([]byte, json.RawMessage) {
	t.Helper()
	c := w.start(t, w.config(t, 5))
	if err := c.RaiseCounter(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	blob, err := c.Seal(t.Context(), testLabel, secret)
	if err != nil {
		t.Fatal(err)
	}
	return secret, blob
}

func wantSecret(t testing.TB, c *TPM, blob json.RawMessage, secret []byte) {
	t.Helper()
	got, err := c.Unseal(t.Context(), testLabel, blob)
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("unseal: %v, the right secret: %v", err, bytes.Equal(got, secret))
	}
}

func wantReason(t testing.TB, what string, err error, reason hardware.Reason) {
	t.Helper()
	var e *hardware.Error
	if !errors.As(err, &e) || e.Reason != reason {
		t.Errorf("%s: %v, want reason %s", what, err, reason)
	}
}

func wantRefused(t testing.TB, what string, c *TPM, blob json.RawMessage, reason hardware.Reason) {
	t.Helper()
	got, err := c.Unseal(t.Context(), testLabel, blob)
	wantReason(t, what, err, reason)
	if got != nil {
		t.Errorf("%s: a secret came out", what)
	}
}
