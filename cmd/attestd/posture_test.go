package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"portcullis/hardware"
	"portcullis/images/card"
)

// A posture is never more than what pi-init left behind (invariant 10).
func TestInvariant10_PostureIsWhatTheBootShowed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*card.Handover)
		want   hardware.Posture
		bad    bool
	}{
		"opened by the chip":           {func(*card.Handover) {}, hardware.PostureCardTheft, false},
		"first boot":                   {func(h *card.Handover) { h.UnlockedBy = card.UnlockedByEnrol }, hardware.PostureCardTheft, false},
		"opened with the recovery key": {func(h *card.Handover) { h.Recovered, h.UnlockedBy = true, card.UnlockedByRecovery }, hardware.PostureNone, false},
		"opened by systemd's token":    {func(h *card.Handover) { h.UnlockedBy = card.UnlockedBySystemd }, hardware.PostureNone, false},
		"no chip":                      {func(h *card.Handover) { h.Backend = "" }, hardware.PostureNone, false},
		"a posture nobody knows":       {func(h *card.Handover) { h.Posture = "perfect" }, hardware.PostureNone, true},
	} {
		dir := t.TempDir()
		h := handover(t)
		c.change(h)
		b, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "pi.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := postureOf(dir); got != c.want && !c.bad || (err != nil) != c.bad {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, _, err := postureOf(t.TempDir()); got != hardware.PostureNone || err != nil {
		t.Errorf("without pi-init: %q, %v", got, err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pi.json"), []byte(`{"posture":"signed-boot+otp"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _, err := postureOf(dir); got != hardware.PostureNone || err == nil {
		t.Errorf("a file that pi-init would not write: %q, %v", got, err)
	}
}

func handover(t *testing.T) *card.Handover {
	release, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&policy.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return &card.Handover{
		Schema: card.HandoverSchema, Model: card.ModelQEMU, Profile: card.ProfileRelease, Sequence: 1, Slot: card.SlotA,
		Posture: string(hardware.PostureCardTheft), Platform: "self", Backend: string(hardware.BackendTPM2),
		UnlockedBy: card.UnlockedByChip, ReleaseKeys: [][]byte{release}, Threshold: 1, PolicyKey: der, NVIndex: 0x01800077,
	}
}

// What an operator has to know of the Pi stands beside its posture.
func TestWarningsBesideThePosture(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*card.Handover)
		want   []string
	}{
		"nothing":     {func(*card.Handover) {}, nil},
		"re-enrolled": {func(h *card.Handover) { h.ReEnrolled = true }, []string{warnReEnrolled}},
		"uncapped": {func(h *card.Handover) {
			h.Uncapped, h.Recovered, h.UnlockedBy, h.Backend = true, true, card.UnlockedByRecovery, ""
		}, []string{warnUncapped}},
	} {
		dir, h := t.TempDir(), handover(t)
		c.change(h)
		b, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "pi.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, got, err := postureOf(dir); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
