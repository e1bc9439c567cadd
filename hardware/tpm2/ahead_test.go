package tpm2

import (
	"encoding/binary"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

// TestAttackRootRunsTheCounterAhead: root in the running Pi raises the counter of releases
// after the cap, which nothing can forbid, see the next test. What that costs: this release
// is refused by its name, and one that was built with a higher sequence opens the
// volume with what is sealed already. Nothing has to be sealed anew.
func TestAttackRootRunsTheCounterAhead(t *testing.T) {
	w := newWorld(t)
	secret, blob := w.sealed(t)
	c := w.start(t, w.config(t, 5))
	if err := c.Cap(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if err := c.increment(DefaultCounter); err != nil {
			t.Fatal(err)
		}
	}
	c = w.start(t, w.config(t, 5))
	wantRefused(t, "this release", c, blob, hardware.ReasonPolicy)
	if v, err := c.Counter(t.Context()); err != nil || v != 45 {
		t.Fatalf("counter %d, %v", v, err)
	}
	wantReason(t, "raise", c.RaiseCounter(t.Context(), 5), ReasonCounterAhead)
	c = w.start(t, w.config(t, 46))
	wantSecret(t, c, blob, secret)
	if err := c.RaiseCounter(t.Context(), 46); err != nil {
		t.Error(err)
	}
	wantSecret(t, c, blob, secret)
}

// TestPolicyOnTheCounterWouldNotKeepRootOff: why the counter has no policy for its
// raising. With one, that holds before the cap only, the chip's owner still deletes the
// counter, counts elsewhere as far as it likes, deletes that too, and the counter made anew
// begins above it: the owner's password is empty, because other software shares the chip.
func TestPolicyOnTheCounterWouldNotKeepRootOff(t *testing.T) {
	w := newWorld(t)
	c := w.start(t, w.config(t, 5))
	const guarded, scratch = 0x01800090, 0x01800091
	policy := tpmpolicy.PCRPolicy(tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(w.boot, w.cmdline)...))
	public := counterPublic(guarded, false)
	public.Attributes.OwnerWrite, public.Attributes.AuthWrite, public.Attributes.PolicyWrite = false, false, true
	public.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy[:]}
	define := func() tpm2.AuthHandle {
		t.Helper()
		if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}).Execute(c.link); err != nil {
			t.Fatal(err)
		}
		name, err := tpm2.NVName(&public)
		if err != nil {
			t.Fatal(err)
		}
		return tpm2.AuthHandle{Handle: guarded, Name: *name}
	}
	raise := func(h tpm2.AuthHandle) error {
		s, done, err := tpm2.PolicySession(c.link, tpm2.TPMAlgSHA256, nonceSize)
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		if err := (&PolicyRun{c, s}).PCRs(tpm2.TPMAlgSHA256, []int{8, 9, 11}); err != nil {
			t.Fatal(err)
		}
		h.Auth = s
		_, err = tpm2.NVIncrement{AuthHandle: h, NVIndex: tpm2.NamedHandle{Handle: h.Handle, Name: h.Name}}.Execute(c.link)
		return err
	}
	h := define()
	if err := raise(h); err != nil {
		t.Fatalf("before the cap: %v", err)
	}
	written := public
	written.Attributes.Written = true
	name, err := tpm2.NVName(&written)
	if err != nil {
		t.Fatal(err)
	}
	h.Name = *name
	value := func(h tpm2.AuthHandle) uint64 {
		t.Helper()
		h.Auth = tpm2.PasswordAuth(nil)
		r, err := tpm2.NVRead{AuthHandle: h, NVIndex: tpm2.NamedHandle{Handle: h.Handle, Name: h.Name}, Size: tpmpolicy.CounterSize}.Execute(c.link)
		if err != nil {
			t.Fatal(err)
		}
		return binary.BigEndian.Uint64(r.Data.Buffer)
	}
	before := value(h)
	if err := c.Cap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := raise(h); err == nil {
		t.Fatal("raised after the cap: the policy does nothing at all")
	}
	// As root, with the owner's empty password.
	if _, err := (tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: guarded, Name: h.Name}}).Execute(c.link); err != nil {
		t.Fatalf("the owner cannot delete it: then a policy would help after all: %v", err)
	}
	if _, err := c.startCounter(scratch); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if err := c.increment(scratch); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: counterHandle(scratch, true)}).Execute(c.link); err != nil {
		t.Fatal(err)
	}
	c = w.start(t, w.config(t, 5))
	h = define()
	if err := raise(h); err != nil {
		t.Fatal(err)
	}
	h.Name = *name
	if now := value(h); now < before+40 {
		t.Errorf("counter %d begins at %d again: then a policy would help after all", before, now)
	}
}
