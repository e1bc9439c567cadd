package fake

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/images/card"
	"portcullis/internal/clock"
)

var (
	secret = bytes.Repeat([]byte{3, 9}, 16)
	good   = Extend([32]byte{}, []byte("release 5"))
)

func chip(t *testing.T, c Config) *Chip {
	t.Helper()
	c.Profile = card.ProfileDev
	if c.Approved == nil {
		c.Approved = map[[32]byte]uint64{good: 5}
	}
	k, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestReleaseImageCannotUseIt(t *testing.T) {
	for _, p := range []string{card.ProfileRelease, "", "Dev"} {
		if _, err := New(Config{Profile: p}); hardware.ReasonOf(err) != ReasonProfile {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestRefusesWhatHardwareRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(t *testing.T, k *Chip)
		label  string
		reason hardware.Reason
	}{
		"nothing":             {func(*testing.T, *Chip) {}, "volume", ""},
		"other software":      {func(_ *testing.T, k *Chip) { k.Measure([]byte("x")) }, "volume", hardware.ReasonPolicy},
		"nothing measured":    {func(_ *testing.T, k *Chip) { k.PowerCycle() }, "volume", hardware.ReasonPolicy},
		"capped":              {func(t *testing.T, k *Chip) { check(t, k.Cap(t.Context())) }, "volume", hardware.ReasonPolicy},
		"counter ahead":       {func(t *testing.T, k *Chip) { check(t, k.RaiseCounter(6)) }, "volume", hardware.ReasonPolicy},
		"counter as high":     {func(t *testing.T, k *Chip) { check(t, k.RaiseCounter(5)) }, "volume", ""},
		"counter stays":       {func(t *testing.T, k *Chip) { check(t, k.RaiseCounter(6)); check(t, k.RaiseCounter(1)) }, "volume", hardware.ReasonPolicy},
		"another label":       {func(*testing.T, *Chip) {}, "other", hardware.ReasonBadBlob},
		"power cycle, booted": {func(_ *testing.T, k *Chip) { k.PowerCycle(); k.Measure([]byte("release 5")) }, "volume", ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := chip(t, Config{})
			k.Measure([]byte("release 5"))
			blob, err := k.Seal(t.Context(), "volume", secret)
			check(t, err)
			c.do(t, k)
			got, err := k.Unseal(t.Context(), c.label, blob)
			if c.reason == "" && (err != nil || !bytes.Equal(got, secret)) || c.reason != "" && (got != nil || hardware.ReasonOf(err) != c.reason) {
				t.Errorf("%x, %v", got, err)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnotherChipRefusesTheBlob(t *testing.T) {
	a, b := chip(t, Config{}), chip(t, Config{})
	blob, err := a.Seal(t.Context(), "volume", secret)
	check(t, err)
	b.Measure([]byte("release 5"))
	if _, err := b.Unseal(t.Context(), "volume", blob); hardware.ReasonOf(err) != hardware.ReasonForeignBlob {
		t.Error(err)
	}
	// A blob that only claims to be of this chip.
	id, err := b.Identify(t.Context())
	check(t, err)
	var m map[string]any
	check(t, json.Unmarshal(blob, &m))
	m["chip"] = id.Serial
	forged, err := json.Marshal(m)
	check(t, err)
	if _, err := b.Unseal(t.Context(), "volume", forged); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
		t.Error(err)
	}
}

// stepClock is moved by hand.
type stepClock struct {
	clock.Real
	now time.Time
}

func (c *stepClock) Now() time.Time { return c.now }

func TestLockoutAfterWrongTriesOutlivesPower(t *testing.T) {
	clk := &stepClock{now: time.Unix(1_800_000_000, 0)}
	path := filepath.Join(t.TempDir(), "chip")
	k := chip(t, Config{Path: path, MaxTries: 3, LockoutFor: time.Hour, Clock: clk})
	k.Measure([]byte("release 5"))
	blob, err := k.Seal(t.Context(), "volume", secret)
	check(t, err)
	for range 3 {
		if _, err := k.Unseal(t.Context(), "wrong", blob); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
			t.Fatal(err)
		}
	}
	again := chip(t, Config{Path: path, MaxTries: 3, LockoutFor: time.Hour, Clock: clk})
	again.Measure([]byte("release 5"))
	if _, err := again.Unseal(t.Context(), "volume", blob); hardware.ReasonOf(err) != hardware.ReasonLockout {
		t.Errorf("a restart lifts the lockout: %v", err)
	}
	clk.now = clk.now.Add(time.Hour)
	if _, err := again.Unseal(t.Context(), "volume", blob); err != nil {
		t.Error(err)
	}
}

func TestFileKeepsTheChip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chip")
	k := chip(t, Config{Path: path})
	blob, err := k.Seal(t.Context(), "volume", secret)
	check(t, err)
	check(t, k.RaiseCounter(3))
	again := chip(t, Config{Path: path})
	again.Measure([]byte("release 5"))
	if got, err := again.Unseal(t.Context(), "volume", blob); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%x, %v", got, err)
	}
	digest := [32]byte{1}
	sig, err := again.Sign(t.Context(), digest)
	check(t, err)
	pub, err := k.Public()
	check(t, err)
	if !ecdsa.VerifyASN1(pub, digest[:], sig) {
		t.Error("another key after a restart")
	}
	check(t, again.Forget(t.Context(), blob))
	last := chip(t, Config{Path: path})
	last.Measure([]byte("release 5"))
	if _, err := last.Unseal(t.Context(), "volume", blob); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
		t.Errorf("forgotten, and given: %v", err)
	}
	check(t, os.WriteFile(path, []byte("{}"), 0o600))
	if _, err := New(Config{Profile: card.ProfileDev, Path: path}); err == nil {
		t.Error("a damaged chip was replaced by a new one")
	}
}

func TestSmallThings(t *testing.T) {
	k := chip(t, Config{})
	if _, err := k.Random(t.Context(), 0); err == nil {
		t.Error("no bytes")
	}
	if b, err := k.Random(t.Context(), 512); err != nil || len(b) != 512 {
		t.Error(err)
	}
	if _, err := k.Seal(t.Context(), "l", make([]byte, 65)); err == nil {
		t.Error("65 bytes sealed")
	}
	check(t, k.Indicate(t.Context(), hardware.IndicateAlarm))
	if k.Shown() != hardware.IndicateAlarm {
		t.Error(k.Shown())
	}
	for _, b := range []string{"", "{}", `{"version":2}`, strings.Repeat("[", 100)} {
		if _, err := k.Unseal(t.Context(), "l", json.RawMessage(b)); err == nil {
			t.Errorf("%q: opened", b)
		}
	}
}
