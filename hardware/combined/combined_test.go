package combined

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/fake"
	"portcullis/images/card"
)

func chip(t *testing.T) *fake.Chip {
	t.Helper()
	// Approved: the state in which nothing was measured.
	k, err := fake.New(fake.Config{Profile: card.ProfileDev, Approved: map[[32]byte]uint64{{}: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var secret = bytes.Repeat([]byte{7, 1}, 16)

func sealed(t *testing.T) (tpm, zymbit *fake.Chip, r *Root, blob json.RawMessage) {
	t.Helper()
	tpm, zymbit = chip(t), chip(t)
	r = New(tpm, zymbit)
	blob, err := r.Seal(t.Context(), "volume", secret)
	if err != nil {
		t.Fatal(err)
	}
	return tpm, zymbit, r, blob
}

func TestBothHalvesGiveTheSecret(t *testing.T) {
	_, _, r, blob := sealed(t)
	got, err := r.Unseal(t.Context(), "volume", blob)
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%x, %v", got, err)
	}
	if bytes.Contains(blob, secret) {
		t.Error("the blob holds the secret")
	}
}

func TestOneHalfAloneGivesNothingAndIsNamed(t *testing.T) {
	tpm, zymbit, _, blob := sealed(t)
	for name, c := range map[string]struct {
		r      *Root
		reason hardware.Reason
		cause  hardware.Reason
	}{
		"another TPM":           {New(chip(t), zymbit), ReasonTPMHalf, hardware.ReasonForeignBlob},
		"another Zymbit module": {New(tpm, chip(t)), ReasonZymbitHalf, hardware.ReasonForeignBlob},
		"halves swapped":        {New(zymbit, tpm), ReasonTPMHalf, hardware.ReasonForeignBlob},
		"both other":            {New(chip(t), chip(t)), ReasonTPMHalf, hardware.ReasonForeignBlob},
	} {
		got, err := c.r.Unseal(t.Context(), "volume", blob)
		if got != nil || hardware.ReasonOf(err) != c.reason || !causedBy(err, c.cause) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	tpm.Measure([]byte("another initramfs"))
	if got, err := New(tpm, zymbit).Unseal(t.Context(), "volume", blob); got != nil || hardware.ReasonOf(err) != ReasonTPMHalf || !causedBy(err, hardware.ReasonPolicy) {
		t.Errorf("policy of the TPM: %x, %v", got, err)
	}
}

// causedBy looks for a reason anywhere in the chain.
func causedBy(err error, r hardware.Reason) bool {
	for err != nil {
		var e *hardware.Error
		if !errors.As(err, &e) {
			return false
		}
		if e.Reason == r {
			return true
		}
		err = e.Err
	}
	return false
}

func TestHalvesOfTwoEnrolmentsDoNotMix(t *testing.T) {
	tpm, zymbit, r, first := sealed(t)
	second, err := r.Seal(t.Context(), "volume", secret)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ParseBlob(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseBlob(second)
	if err != nil {
		t.Fatal(err)
	}
	a.Zymbit = b.Zymbit
	mixed, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := New(tpm, zymbit).Unseal(t.Context(), "volume", mixed); got != nil || hardware.ReasonOf(err) != ReasonMismatch {
		t.Errorf("%x, %v", got, err)
	}
}

func TestSharesAreFramed(t *testing.T) {
	// Without length framing these two pairs would give one key.
	a, err := gcm([]byte("abc"), []byte("def"), "l")
	if err != nil {
		t.Fatal(err)
	}
	b, err := gcm([]byte("ab"), []byte("cdef"), "l")
	if err != nil {
		t.Fatal(err)
	}
	c, err := gcm([]byte("abc"), []byte("def"), "m")
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 12)
	box := a.Seal(nil, nonce, secret, nil)
	if _, err := b.Open(nil, nonce, box, nil); err == nil {
		t.Error("a byte moved from one share to the other gives the same key")
	}
	if _, err := c.Open(nil, nonce, box, nil); err == nil {
		t.Error("the label is not in the key")
	}
}

func TestForgetByEitherHalf(t *testing.T) {
	tpm, zymbit, r, blob := sealed(t)
	if err := r.Forget(t.Context(), blob); err != nil {
		t.Fatal(err)
	}
	if got, err := New(tpm, zymbit).Unseal(t.Context(), "volume", blob); got != nil || err == nil {
		t.Error("forgotten, and given")
	}
	// A module that cannot forget does not matter where the TPM can.
	tpm, _, _, blob = sealed(t)
	if err := New(tpm, chip(t)).Forget(t.Context(), blob); err != nil {
		t.Error(err)
	}
	if err := New(chip(t), chip(t)).Forget(t.Context(), blob); hardware.ReasonOf(err) != ReasonTPMHalf {
		t.Errorf("nobody could forget: %v", err)
	}
}

func TestCapClosesTheTPMHalf(t *testing.T) {
	tpm, _, r, blob := sealed(t)
	if err := r.Cap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Unseal(t.Context(), "volume", blob); got != nil || hardware.ReasonOf(err) != ReasonTPMHalf {
		t.Errorf("%x, %v", got, err)
	}
	tpm.PowerCycle()
	if _, err := r.Unseal(t.Context(), "volume", blob); err != nil {
		t.Error(err)
	}
}

func TestTampersOfBothChips(t *testing.T) {
	tpm, zymbit, r, _ := sealed(t)
	ctx, cancel := context.WithCancel(t.Context())
	events, err := r.Tampers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tpm.Breach(hardware.Tamper{Source: "a"})
	zymbit.Breach(hardware.Tamper{Source: "b"})
	seen := map[string]bool{(<-events).Source: true, (<-events).Source: true}
	if !seen["a"] || !seen["b"] {
		t.Errorf("%v", seen)
	}
	cancel()
	for range events {
	}
}

func TestBlobRefusals(t *testing.T) {
	_, _, r, good := sealed(t)
	for name, change := range map[string]func(b *Blob){
		"version":    func(b *Blob) { b.Version = 2 },
		"no half":    func(b *Blob) { b.TPM = nil },
		"nonce":      func(b *Blob) { b.Nonce = b.Nonce[1:] },
		"box":        func(b *Blob) { b.Box = b.Box[:16] },
		"box, large": func(b *Blob) { b.Box = make([]byte, 81) },
	} {
		b, err := ParseBlob(good)
		if err != nil {
			t.Fatal(err)
		}
		change(b)
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.Unseal(t.Context(), "volume", raw); got != nil || hardware.ReasonOf(err) != hardware.ReasonBadBlob {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func TestRandomMixesBoth(t *testing.T) {
	_, _, r, _ := sealed(t)
	a, err := r.Random(t.Context(), 32)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Random(t.Context(), 32)
	if err != nil || bytes.Equal(a, b) {
		t.Errorf("%x, %x, %v", a, b, err)
	}
	id, err := r.Identify(t.Context())
	if err != nil || id.Backend != hardware.BackendCombined || !id.UnverifiedOnHardware {
		t.Errorf("%+v, %v", id, err)
	}
	if err := r.Indicate(t.Context(), hardware.IndicateReady); err != nil {
		t.Error(err)
	}
}

func FuzzBlob(f *testing.F) {
	f.Add([]byte(`{"version":1,"tpm":{},"zymbit":{},"nonce":"AAAAAAAAAAAAAAAA","box":"AAAAAAAAAAAAAAAAAAAAAAAA"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseBlob(b)
		if err == nil && (len(v.Nonce) != 12 || len(v.Box) < 17) {
			t.Errorf("%+v", v)
		}
	})
}
