package tpm2

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

func TestSealedSecretComesBackAtTheNextBoot(t *testing.T) {
	w := newWorld(t)
	secret, blob := w.sealed(t)
	wantSecret(t, w.start(t, w.config(t, 5)), blob, secret)
	// A newer release, signed for other values, without sealing again.
	w.boot[0] ^= 1
	c := w.start(t, w.config(t, 6))
	wantSecret(t, c, blob, secret)
	// Twice in one boot, and no session or object is left behind.
	for range 10 {
		wantSecret(t, c, blob, secret)
	}
}

// Golden: a trial session of the chip arrives at the digest that was computed without it.
func TestChipAgreesWithComputedPolicy(t *testing.T) {
	w := newWorld(t)
	c := w.start(t, w.config(t, 5))
	if err := c.RaiseCounter(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	branch := c.cfg.Policy.Branch(tpmpolicy.PlatformSelf)
	digest := func(s tpm2.Session) []byte {
		r, err := tpm2.PolicyGetDigest{PolicySession: s.Handle()}.Execute(c.link)
		if err != nil {
			t.Fatal(err)
		}
		return r.PolicyDigest.Buffer
	}
	s, done, err := tpm2.PolicySession(c.link, tpm2.TPMAlgSHA256, nonceSize)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if err := (&PolicyRun{c, s}).counter(DefaultCounter, 5); err != nil {
		t.Fatal(err)
	}
	if want := tpmpolicy.Counted([32]byte{}, DefaultCounter, 5); !bytes.Equal(digest(s), want[:]) {
		t.Error("PolicyNV is computed otherwise")
	}
	s, done, err = tpm2.PolicySession(c.link, tpm2.TPMAlgSHA256, nonceSize)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if err := c.satisfy(&PolicyRun{c, s}, branch); err != nil {
		t.Fatal(err)
	}
	if want, err := tpmpolicy.SealPolicy(&w.key.PublicKey, tpmpolicy.PlatformSelf); err != nil || !bytes.Equal(digest(s), want[:]) {
		t.Errorf("PolicyAuthorize is computed otherwise: %v", err)
	}
}

func TestAttackOtherSoftwareIsRefused(t *testing.T) {
	w := newWorld(t)
	_, blob := w.sealed(t)
	cfg := w.config(t, 5)
	// Other bytes in the boot partition, the old policy.json beside them.
	honest := w.boot
	w.boot[0] ^= 1
	wantRefused(t, "boot image", w.start(t, cfg), blob, hardware.ReasonPolicy)
	w.boot = honest
	w.cmdline += " init=/bin/sh"
	wantRefused(t, "command line", w.start(t, cfg), blob, hardware.ReasonPolicy)
	// The attacker's software does not look at registers first.
	c := w.start(t, cfg)
	wantReason(t, "command line, asked of the chip alone", c.unsealBlindly(t, blob), hardware.ReasonPolicy)
	// Nothing measured.
	w.chip.Reboot(t)
	wantRefused(t, "nothing measured", open(t, w.chip.Path, cfg), blob, hardware.ReasonPolicy)
}

// unsealBlindly asks the chip without our own checks before it: they explain, the
// chip decides.
func (t *TPM) unsealBlindly(tb testing.TB, blob json.RawMessage) error {
	b, err := parseBlob(blob)
	if err != nil {
		tb.Fatal(err)
	}
	object, err := b.object()
	if err != nil {
		tb.Fatal(err)
	}
	srk, err := t.storageKey(false)
	if err != nil {
		tb.Fatal(err)
	}
	_, err = t.unseal(srk, object, b, t.cfg.Policy.Branch(t.cfg.Platform), testLabel)
	return reasoned("unseal", err)
}

// No password opens the object, not even the empty one that it has: only its policy.
func TestAttackUnsealWithTheEmptyPassword(t *testing.T) {
	w := newWorld(t)
	_, blob := w.sealed(t)
	c := w.start(t, w.config(t, 5))
	b, err := parseBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	object, err := b.object()
	if err != nil {
		t.Fatal(err)
	}
	srk, err := c.storageKey(false)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate: tpm2.TPM2BPrivate{Buffer: b.Private}, InPublic: tpm2.New2B(*object)}.Execute(c.link)
	if err != nil {
		t.Fatal(err)
	}
	defer c.flush(loaded.ObjectHandle)
	for name, auth := range map[string]tpm2.Session{"password": tpm2.PasswordAuth(nil), "HMAC": tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize)} {
		r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: auth}}.Execute(c.link)
		if !errors.Is(err, tpm2.TPMRCAuthUnavailable) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

func TestAttackOlderReleaseAfterCommit(t *testing.T) {
	w := newWorld(t)
	secret, blob := w.sealed(t)
	old := w.config(t, 5)
	c := w.start(t, w.config(t, 7))
	if err := c.RaiseCounter(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	wantSecret(t, c, blob, secret)
	c = w.start(t, old)
	wantRefused(t, "older release", c, blob, hardware.ReasonPolicy)
	wantReason(t, "older release, asked of the chip alone", c.unsealBlindly(t, blob), hardware.ReasonPolicy)
	_, err := c.Seal(t.Context(), testLabel, secret)
	wantReason(t, "older release seals", err, ReasonCounterAhead)
	wantReason(t, "older release raises", c.RaiseCounter(t.Context(), 5), ReasonCounterAhead)

	// The owner may delete the counter; the new one goes on above the old.
	if _, err := (tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: counterHandle(DefaultCounter, true)}).Execute(c.link); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "counter deleted", c, blob, hardware.ReasonPolicy)
	wantReason(t, "counter deleted, asked of the chip alone", c.unsealBlindly(t, blob), hardware.ReasonPolicy)
	if v, err := c.startCounter(DefaultCounter); err != nil || v <= 7 {
		t.Errorf("a counter that was made again starts at %d, %v", v, err)
	}
	wantRefused(t, "counter made again", c, blob, hardware.ReasonPolicy)
}

func TestAttackUnsealAfterTheCap(t *testing.T) {
	w := newWorld(t)
	secret, blob := w.sealed(t)
	c := w.start(t, w.config(t, 5))
	wantSecret(t, c, blob, secret)
	if err := c.Cap(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "after the cap", c, blob, hardware.ReasonPolicy)
	wantReason(t, "after the cap, asked of the chip alone", c.unsealBlindly(t, blob), hardware.ReasonPolicy)
	// Measuring as at boot does not lead back.
	w.measure(t, c)
	wantReason(t, "measured again", c.unsealBlindly(t, blob), hardware.ReasonPolicy)
}

func TestAttackClonedCardOnAnotherChip(t *testing.T) {
	w := newWorld(t)
	_, blob := w.sealed(t)
	cfg := w.config(t, 5)
	w.chip = tpmtest.Start(t)
	c := w.start(t, cfg)
	wantRefused(t, "another chip without a storage key", c, blob, hardware.ReasonForeignBlob)
	if err := c.RaiseCounter(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Seal(t.Context(), testLabel, []byte("x")); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "another chip", c, blob, hardware.ReasonForeignBlob)
	// The attacker writes that chip's storage key into the blob.
	b, err := parseBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	srk, err := c.storageKey(false)
	if err != nil {
		t.Fatal(err)
	}
	b.SRK = srk.Name.Buffer
	edited, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "another chip named in the blob", c, edited, hardware.ReasonForeignBlob)
}

func TestAttackPlatformOfTheWeakerKind(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(t, 5)
	cfg.Platform = tpmpolicy.PlatformEFI
	c := w.start(t, cfg)
	if err := c.RaiseCounter(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	blob, err := c.Seal(t.Context(), testLabel, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	c = w.start(t, w.config(t, 5))
	wantRefused(t, "sealed under firmware", c, blob, hardware.ReasonPolicy)
	edited := json.RawMessage(strings.Replace(string(blob), `"efi"`, `"self"`, 1))
	wantRefused(t, "and edited", c, edited, hardware.ReasonPolicy)
	wantReason(t, "asked of the chip alone", c.unsealBlindly(t, edited), hardware.ReasonPolicy)
}

func TestAttackPolicyFileEditedOrOfAnotherKey(t *testing.T) {
	w := newWorld(t)
	_, blob := w.sealed(t)
	w.cmdline += " init=/bin/sh"
	cfg := w.config(t, 5)
	// The attacker signs what he runs.
	cfg.Policy = w.policy(t, newPolicyKey(t), 5)
	c := w.start(t, cfg)
	wantRefused(t, "another key", c, blob, ReasonPolicyFile)
	wantReason(t, "another key, asked of the chip alone", c.unsealBlindly(t, blob), ReasonPolicyFile)
	// And makes the initramfs trust his key.
	other := newPolicyKey(t)
	cfg.PolicyKey, cfg.Policy = &other.PublicKey, w.policy(t, other, 5)
	c = w.start(t, cfg)
	wantRefused(t, "another key that is trusted", c, blob, hardware.ReasonPolicy)
	wantReason(t, "another key that is trusted, asked of the chip alone", c.unsealBlindly(t, blob), hardware.ReasonPolicy)
	// He edits the values under the right signature.
	cfg = w.config(t, 5)
	w2 := *w
	w2.cmdline = "portcullis.pi=1 roothash=00"
	cfg.Policy.Branch(tpmpolicy.PlatformSelf).Signature = w2.policy(t, w.key, 5).Branch(tpmpolicy.PlatformSelf).Signature
	c = w.start(t, cfg)
	wantRefused(t, "edited values", c, blob, ReasonPolicyFile)
	wantReason(t, "edited values, asked of the chip alone", c.unsealBlindly(t, blob), ReasonPolicyFile)
	cfg.Policy.Branches = cfg.Policy.Branches[1:]
	wantRefused(t, "no branch", w.start(t, cfg), blob, ReasonPolicyFile)
}

func TestNothingMeasuredIsNotCalledProtected(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(t, 5)
	c := open(t, w.chip.Path, cfg)
	_, err := c.Seal(t.Context(), testLabel, []byte("secret"))
	wantReason(t, "seal", err, ReasonPCREmpty)
	cfg.Unmeasured = true
	c = open(t, w.chip.Path, cfg)
	blob, err := c.Seal(t.Context(), testLabel, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	wantSecret(t, w.start(t, cfg), blob, []byte("secret"))
}

func TestForgottenBlobNeverOpensAgain(t *testing.T) {
	w := newWorld(t)
	_, blob := w.sealed(t)
	c := w.start(t, w.config(t, 5))
	if err := c.Forget(t.Context(), blob); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "forgotten", c, blob, ReasonForgotten)
	wantReason(t, "forgotten, asked of the chip alone", c.unsealBlindly(t, blob), hardware.ReasonPolicy)
	c = w.start(t, w.config(t, 6))
	wantRefused(t, "forgotten, newer release", c, blob, ReasonForgotten)
	// The counter deleted and made again.
	if _, err := (tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: counterHandle(c.cfg.Revocation, true)}).Execute(c.link); err != nil {
		t.Fatal(err)
	}
	if _, err := c.startCounter(c.cfg.Revocation); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "forgotten, counter made again", c, blob, ReasonForgotten)
	// An attacker writes a higher value into the blob: it is in the object's policy.
	b, err := parseBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	b.Most = 1 << 40
	edited, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "forgotten, edited", c, edited, hardware.ReasonPolicy)
	wantReason(t, "forgotten, edited, asked of the chip alone", c.unsealBlindly(t, edited), hardware.ReasonPolicy)
	// What is sealed now opens.
	blob, err = c.Seal(t.Context(), testLabel, []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	wantSecret(t, c, blob, []byte("new"))
}

func TestBlobRefusals(t *testing.T) {
	w := newWorld(t)
	secret, blob := w.sealed(t)
	c := w.start(t, w.config(t, 5))
	_, err := c.Unseal(t.Context(), "other", blob)
	wantReason(t, "another label", err, hardware.ReasonBadBlob)
	text := string(blob)
	for name, bad := range map[string]string{
		"empty":         "",
		"null":          "null",
		"unknown field": strings.Replace(text, `"version"`, `"more":1,"version"`, 1),
		"version":       strings.Replace(text, `"version":1`, `"version":2`, 1),
		"more behind":   text + "1",
		"too large":     text + strings.Repeat(" ", MaxBlob),
		"platform":      strings.Replace(text, `"self"`, `"uboot"`, 1),
		"short public":  strings.Replace(text, `"public":"AAgAC`, `"public":"AAgA`, 1),
	} {
		if bad == text {
			t.Fatalf("%s: the test changes nothing", name)
		}
		wantRefused(t, name, c, json.RawMessage(bad), hardware.ReasonBadBlob)
	}
	b, err := parseBlob(blob)
	if err != nil {
		t.Fatal(err)
	}
	b.Private[len(b.Private)-1] ^= 1
	edited, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "a bit in the private part", c, edited, hardware.ReasonForeignBlob)
	b.Private = b.Private[:10]
	if edited, err = b.encode(); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "a short private part", c, edited, hardware.ReasonBadBlob)
	wantSecret(t, c, blob, secret)
	for _, n := range []int{0, MaxSecret + 1} {
		if _, err := c.Seal(t.Context(), testLabel, make([]byte, n)); err == nil {
			t.Errorf("sealed %d bytes", n)
		}
	}
	longest := bytes.Repeat([]byte{7}, MaxSecret)
	if blob, err = c.Seal(t.Context(), testLabel, longest); err != nil {
		t.Fatal(err)
	}
	wantSecret(t, c, blob, longest)
}

func FuzzParseBlob(f *testing.F) {
	w := newWorld(f)
	_, blob := w.sealed(f)
	f.Add([]byte(blob))
	f.Add([]byte(`{"version":1,"platform":"self","srk":"","public":"AAg="}`))
	f.Fuzz(func(t *testing.T, j []byte) {
		b, err := parseBlob(j)
		if err != nil {
			return
		}
		if _, err := b.encode(); err != nil && len(j) < MaxBlob/2 {
			t.Errorf("what was read cannot be written: %v", err)
		}
		_, _ = b.object()
	})
}
