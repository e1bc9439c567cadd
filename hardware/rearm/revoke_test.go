package rearm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/fake"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/luks2"
)

// tpm is an emulated chip behind a boot of release 1.
type tpm struct {
	t      *testing.T
	chip   *tpmtest.Chip
	config tpm2.Config
	events []tpmpolicy.Event
}

func newTPM(t *testing.T) *tpm {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &tpm{t: t, chip: tpmtest.Start(t), events: tpmpolicy.SelfEvents([32]byte{1}, "portcullis.pi=1")}
	s, err := tpmpolicy.Sign(key, tpmpolicy.Branch{Platform: tpmpolicy.PlatformSelf, Sequence: 1, PCRs: tpmpolicy.Predict(nil, p.events...), NVIndex: tpm2.DefaultCounter})
	if err != nil {
		t.Fatal(err)
	}
	p.config = tpm2.Config{PolicyKey: &key.PublicKey, Platform: tpmpolicy.PlatformSelf,
		Policy: &tpmpolicy.File{Version: tpmpolicy.FileVersion, Sequence: 1, Branches: []tpmpolicy.Signed{s}}}
	return p
}

// boot is a power cycle, measured and not yet capped.
func (p *tpm) boot() *tpm2.TPM {
	p.t.Helper()
	p.chip.Reboot(p.t)
	c, err := tpm2.Open(p.chip.Path, p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	for _, e := range p.events {
		if err := c.Extend(p.t.Context(), e.PCR, e.Data); err != nil {
			p.t.Fatal(err)
		}
	}
	return c
}

// refusals are the reasons for which a chip does not open a volume's tokens of ours.
func refusals(t *testing.T, d *disk, root hardware.Root) (out []hardware.Reason) {
	t.Helper()
	h, _, err := luks2.Read(d, deviceSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range h.Tokens() {
		if p, err := hardware.ParseToken(tok.JSON); err == nil && tok.Type == hardware.TokenType {
			if _, err := root.Unseal(t.Context(), card.SealLabel(h.UUID()), p.Blob); err != nil {
				out = append(out, hardware.ReasonOf(err))
			}
		}
	}
	return out
}

// TestAttackOldCopyOfTheCardAfterRearm: a copy of the card from before, with its keyslot
// and its blob, opens nothing any more on the very chip that it was made for.
func TestAttackOldCopyOfTheCardAfterRearm(t *testing.T) {
	p := newTPM(t)
	v := enrolledOn(t, p.boot(), hardware.BackendTPM2)
	d := &disk{b: bytes.Clone(v.disk)}
	if n := opens(t, d, p.boot(), v.key); n != 1 {
		t.Fatalf("%d tokens open before", n)
	}
	for round := range 3 {
		before := &disk{b: bytes.Clone(d.b)}
		c := p.boot()
		o := options(d, v, c)
		o.Backend = hardware.BackendTPM2
		r, err := Run(t.Context(), o)
		if err != nil || !r.Revoked {
			t.Fatalf("%+v, %v", r, err)
		}
		c = p.boot()
		if n := opens(t, d, c, v.key); n != 1 {
			t.Errorf("round %d: the new card opens %d tokens", round, n)
		}
		if n := opens(t, before, c, v.key); n != 0 {
			t.Errorf("round %d: the old copy opens %d tokens", round, n)
		}
		if got := refusals(t, before, c); len(got) != 1 || got[0] != tpm2.ReasonForgotten {
			t.Errorf("round %d: %v", round, got)
		}
	}
}

// TestPowerCutsOfARearmOnTheSameChip: cut at every write and before the revocation, and
// called again: the new blob opens, and nothing older does.
func TestPowerCutsOfARearmOnTheSameChip(t *testing.T) {
	p := newTPM(t)
	v := enrolledOn(t, p.boot(), hardware.BackendTPM2)
	last := v.disk
	probe := &disk{b: bytes.Clone(last)}
	for cut := 1; ; cut++ {
		d, c := &disk{b: bytes.Clone(last), cut: cut}, p.boot()
		o := options(d, v, c)
		o.Backend = hardware.BackendTPM2
		_, err := Run(t.Context(), o)
		if err == nil {
			if cut < 5 {
				t.Fatalf("only %d writes", cut-1)
			}
			break
		}
		c = p.boot()
		after := &disk{b: d.b}
		recoveryOpens(t, after, v)
		if opens(t, after, c, v.key) == 0 {
			t.Errorf("cut at write %d: the chip opens nothing", cut)
		}
		o = options(after, v, c)
		o.Backend = hardware.BackendTPM2
		if r, err := Run(t.Context(), o); err != nil || !r.Revoked {
			t.Fatalf("cut at write %d, again: %+v, %v", cut, r, err)
		}
		c = p.boot()
		if n := opens(t, after, c, v.key); n != 1 {
			t.Errorf("cut at write %d: %d tokens open in the end", cut, n)
		}
		if opens(t, &disk{b: last}, c, v.key) != 0 {
			t.Errorf("cut at write %d: the card from before still opens", cut)
		}
		last = after.b
	}
	if n := opens(t, probe, p.boot(), v.key); n != 0 {
		t.Errorf("the first card still opens %d tokens", n)
	}
}

// TestRevocationThatWasCutIsCaughtUp: the power failed before the chip was told, again
// and again. The next call catches up, and Forget does not miss what is ahead.
func TestRevocationThatWasCutIsCaughtUp(t *testing.T) {
	p := newTPM(t)
	v := enrolledOn(t, p.boot(), hardware.BackendTPM2)
	copies := [][]byte{bytes.Clone(v.disk)}
	d := &disk{b: bytes.Clone(v.disk)}
	for range 3 {
		o := options(d, v, cutRevoke{p.boot()})
		o.Backend = hardware.BackendTPM2
		if r, err := Run(t.Context(), o); err == nil || r == nil || r.Revoked {
			t.Fatalf("%+v, %v", r, err)
		}
		copies = append(copies, bytes.Clone(d.b))
	}
	o := options(d, v, p.boot())
	o.Backend = hardware.BackendTPM2
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	c := p.boot()
	for i, old := range copies {
		if n := opens(t, &disk{b: old}, c, v.key); n != 0 {
			t.Errorf("copy %d still opens", i)
		}
	}
	if n := opens(t, d, c, v.key); n != 1 {
		t.Errorf("%d tokens open", n)
	}
	o = options(d, v, cutRevoke{p.boot()})
	o.Backend = hardware.BackendTPM2
	if _, err := Run(t.Context(), o); err == nil {
		t.Fatal("not cut")
	}
	c = p.boot()
	if err := c.Forget(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := opens(t, d, c, v.key); n != 0 {
		t.Error("a blob that was ahead of the counter survives Forget")
	}
}

// cutRevoke is a chip whose power fails before it takes anything back.
type cutRevoke struct{ *tpm2.TPM }

func (cutRevoke) Revoke(context.Context, json.RawMessage) error { return errPower }

// TestChipThatTakesNothingBackIsSaidSo: a module without such a counter goes on opening
// old copies; the result does not claim otherwise.
func TestChipThatTakesNothingBackIsSaidSo(t *testing.T) {
	v := enrolled(t)
	d := &disk{b: bytes.Clone(v.disk)}
	if _, ok := hardware.Root(&fake.Chip{}).(hardware.Renewer); ok {
		t.Fatal("the fake became a Renewer: take another chip for this test")
	}
	if r, err := Run(t.Context(), options(d, v, v.old)); err != nil || r.Revoked {
		t.Errorf("%+v, %v", r, err)
	}
}
