package piinit

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/combined"
	"portcullis/hardware/fake"
	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// module is a fake that plays a Zymbit module: it measures nothing, so one state is
// approved, the one it is in.
func module(t testing.TB) hardware.Root {
	t.Helper()
	z, err := fake.New(fake.Config{Profile: card.ProfileDev, Approved: map[[32]byte]uint64{{}: 3}})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// silent is a module that is not there: its tools are, and say so when they are run.
type silent struct{ hardware.Root }

func (silent) Random(context.Context, int) ([]byte, error) {
	return nil, chipError("zymbit-refused", "nobody answers")
}

// withModule is a Pi as flashed, with a module beside its TPM.
func withModule(t *testing.T, root string) *pi {
	t.Helper()
	b := newSigner(t).build(t, 3)
	b.info.Root = root
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.zymkey = module(t)
	return p
}

// token is the one of ours in the header.
func token(t testing.TB, p *pi) (*hardware.Token, int) {
	t.Helper()
	for _, k := range p.header().Tokens() {
		if k.Type == hardware.TokenType {
			ours, err := hardware.ParseToken(k.JSON)
			if err != nil {
				t.Fatal(err)
			}
			return ours, k.ID
		}
	}
	t.Fatal("no token of ours")
	return nil, 0
}

func enrolledBackend(t testing.TB, p *pi) string {
	k, _ := token(t, p)
	return string(k.Backend)
}

// TestZymbitAlone: a module without a TPM keeps the key; nothing is measured, counted
// or closed, and stage log and handover say so.
func TestZymbitAlone(t *testing.T) {
	p := withModule(t, "")
	p.chip = nil
	h := p.must().Handover
	if h.Backend != card.RootZymbit || h.Posture != string(hardware.PostureCardTheft) || !h.FirstBoot || !strings.Contains(h.PostureDetail, "measures nothing") {
		t.Errorf("%+v", h)
	}
	recovery := p.people.recoveryKey(t)
	h = p.must().Handover
	if h.UnlockedBy != card.UnlockedByZymbit || h.Backend != card.RootZymbit || h.FirstBoot || !strings.Contains(h.PostureDetail, "not closed") {
		t.Errorf("%+v", h)
	}
	for _, want := range []string{"stage=unlock t=0.00 by=zymbit", "stage=cap t=0.00 chip=zymbit closed=no"} {
		if !strings.Contains(p.people.text(), want) {
			t.Errorf("no %q on the console:\n%s", want, p.people.text())
		}
	}
	// The card in another Pi, with another module and even with a TPM.
	p.zymkey = module(t)
	p.refused(string(ReasonUnlock))
	p.chip = newChip()
	p.refused(string(ReasonUnlock))
	p.zymkey = nil
	p.answers = []string{recovery}
	if h := p.must().Handover; !h.Recovered {
		t.Errorf("%+v", h)
	}
}

// TestCombinedNeedsBoth: a card that was enrolled with both chips opens with both only;
// after the boot the TPM's half stays closed.
func TestCombinedNeedsBoth(t *testing.T) {
	p := withModule(t, "")
	if h := p.must().Handover; h.Backend != card.RootCombined || !h.FirstBoot {
		t.Errorf("%+v", h)
	}
	recovery := p.people.recoveryKey(t)
	h := p.must().Handover
	if h.UnlockedBy != card.UnlockedByCombined || h.Backend != card.RootCombined || h.Chip != "SIM chip + none fake" {
		t.Errorf("%+v", h)
	}
	k, _ := token(t, p)
	root := combined.New(p.chip, p.zymkey)
	if _, err := root.Unseal(t.Context(), card.SealLabel(p.header().UUID()), k.Blob); hardware.ReasonOf(err) != combined.ReasonTPMHalf {
		t.Errorf("after the boot the combined key is given out: %v", err)
	}
	own, chip := p.zymkey, p.chip
	p.zymkey = nil
	p.refused(string(ReasonUnlock))
	wantProblem(t, p, string(combined.ReasonZymbitHalf))
	p.zymkey = module(t)
	p.refused(string(ReasonUnlock))
	wantProblem(t, p, string(combined.ReasonZymbitHalf))
	p.zymkey, p.chip = own, nil
	p.refused(string(ReasonUnlock))
	wantProblem(t, p, string(combined.ReasonTPMHalf))
	p.chip = newChip()
	p.chip.state.counter = chip.state.counter
	p.refused(string(ReasonUnlock))
	wantProblem(t, p, string(combined.ReasonTPMHalf))
	p.answers = []string{recovery}
	if h := p.must().Handover; !h.Recovered || h.ChipProblem != string(combined.ReasonTPMHalf) {
		t.Errorf("%+v", h)
	}
}

func wantProblem(t *testing.T, p *pi, reason string) {
	t.Helper()
	if !strings.Contains(p.people.text(), reason) {
		t.Errorf("no %s on the console:\n%s", reason, p.people.text())
	}
}

// TestAttackCombinedTokenMadeSingle: whoever has the card for a minute writes one half
// of a combined token as a whole one. That half is a share and opens nothing, with
// either chip; an image that demands both does not even ask.
func TestAttackCombinedTokenMadeSingle(t *testing.T) {
	for _, demand := range []string{"", card.RootCombined} {
		p := withModule(t, demand)
		p.must()
		k, id := token(t, p)
		blob, err := combined.ParseBlob(k.Blob)
		if err != nil {
			t.Fatal(err)
		}
		for backend, half := range map[hardware.Backend]json.RawMessage{hardware.BackendTPM2: blob.TPM, hardware.BackendZymbit: blob.Zymbit} {
			edited := *k
			edited.Backend, edited.Blob = backend, half
			text, err := edited.Encode()
			if err != nil {
				t.Fatal(err)
			}
			h := p.header()
			if _, err := h.SetToken(id, text); err != nil {
				t.Fatal(err)
			}
			if err := h.Write(p.part(card.PartCrypt)); err != nil {
				t.Fatal(err)
			}
			p.refused(string(ReasonUnlock))
			want := "luks2-passphrase"
			if demand != "" {
				want = string(ReasonDowngrade)
			}
			wantProblem(t, p, want)
		}
	}
}

// TestImageDemandsItsChips: what an image demands is never weakened at a first boot, and
// nothing is written to a card that lacks it.
func TestImageDemandsItsChips(t *testing.T) {
	for _, c := range []struct {
		demand      string
		tpm, zymkey bool
		backend     string // "": refused
		reason      string
	}{
		{"", true, true, card.RootCombined, ""},
		{card.RootAuto, true, false, card.RootTPM2, ""},
		{card.RootAuto, false, true, card.RootZymbit, ""},
		{card.RootAuto, false, false, "", string(ReasonNoChip)},
		{card.RootTPM2, true, true, card.RootTPM2, ""},
		{card.RootTPM2, false, true, "", string(ReasonNoChip)},
		{card.RootZymbit, true, true, card.RootZymbit, ""},
		{card.RootZymbit, true, false, "", string(ReasonNoChip)},
		{card.RootCombined, true, true, card.RootCombined, ""},
		{card.RootCombined, true, false, "", string(combined.ReasonZymbitHalf)},
		{card.RootCombined, false, true, "", string(combined.ReasonTPMHalf)},
	} {
		for _, tools := range []bool{false, true} { // of a module that is not there
			if c.zymkey && tools {
				continue
			}
			p := withModule(t, c.demand)
			if !c.tpm {
				p.chip = nil
			}
			if !c.zymkey {
				p.zymkey = nil
				if tools {
					p.zymkey = silent{module(t)}
				}
			}
			before := len(p.m.blocks)
			if c.backend == "" {
				reason := c.reason
				if tools && c.reason == string(ReasonNoChip) {
					reason = "zymbit-refused"
				}
				_, err := p.boot()
				if got := string(boot.ReasonOf(err)); err == nil || got != c.reason && got != reason {
					t.Errorf("%+v tools %t: %v", c, tools, err)
				}
				if len(p.m.blocks) != before {
					t.Errorf("%+v: the card was written", c)
				}
				continue
			}
			h := p.must().Handover
			if h.Backend != c.backend || enrolledBackend(t, p) != c.backend || h.Root != c.demand {
				t.Errorf("%+v tools %t: %+v", c, tools, h)
			}
			if got := p.must().Handover; got.Backend != c.backend || got.UnlockedBy != opened[hardware.Backend(c.backend)] {
				t.Errorf("%+v tools %t: second boot %+v", c, tools, got)
			}
		}
	}
}

// TestTPMThatWasNotResetIsNotDoneWithout: a first boot that finds a TPM which does not
// work now ends there; it does not enrol the module alone.
func TestTPMThatWasNotResetIsNotDoneWithout(t *testing.T) {
	p := withModule(t, "")
	m := p.m.clone()
	p.must()
	p.m, p.warm = m, true
	p.refused(string(ReasonNotReset))
	p.warm = false
	if h := p.must().Handover; h.Backend != card.RootCombined {
		t.Errorf("%+v", h)
	}
}

// TestReleaseThatDemandsMore: an update to an image that demands both chips gives way on
// a card that is bound to one, and takes a card that is bound to both.
func TestReleaseThatDemandsMore(t *testing.T) {
	s := newSigner(t)
	b := s.build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	next := s.build(t, 4)
	next.info.Root = card.RootCombined
	stage(t, p, next)
	p.zymkey, p.built = module(t), next
	for range card.MaxAttempts {
		p.refused(string(ReasonDowngrade))
	}
	p.refused(string(ReasonTrial))
	p.built = b
	if h := p.must().Handover; h.UnlockedBy != card.UnlockedByChip {
		t.Errorf("%+v", h)
	}
	// The other way round nothing is lost: the token says what is asked.
	p = withModule(t, card.RootCombined)
	p.must()
	for _, demand := range []string{card.RootAuto, card.RootTPM2, card.RootZymbit} {
		p.built.info.Root = demand
		if h := p.must().Handover; h.UnlockedBy != card.UnlockedByCombined {
			t.Errorf("%s: %+v", demand, h)
		}
	}
}

// TestBrokenModuleDoesNotTouchATPMsCard: a card that the TPM opens does not ask the module.
func TestBrokenModuleDoesNotTouchATPMsCard(t *testing.T) {
	p := withModule(t, card.RootTPM2)
	p.must()
	p.zymkey = silent{p.zymkey}
	if h := p.must().Handover; h.UnlockedBy != card.UnlockedByChip || h.Backend != card.RootTPM2 || h.Chip != "SIM chip" {
		t.Errorf("%+v", h)
	}
}
