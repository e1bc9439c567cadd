package piinit

import (
	"errors"
	"strings"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
)

// asRoot asks the chip for the key as root of the running system can: with everything
// that pi-init read, and after putting into the registers what pi-init would have put there.
func asRoot(t *testing.T, p *pi, b *built) error {
	t.Helper()
	c := p.chip
	c.broken, c.deaf = nil, nil
	for i, e := range tpmpolicy.SelfEvents(card.MeasuredDigest(b.boot), b.cmdline) {
		if tpmpolicy.Empty(c.pcrs[e.PCR]) || i < 2 && c.pcrs[e.PCR] != tpmpolicy.Extend([32]byte{}, e.Data) {
			if err := c.Extend(t.Context(), e.PCR, e.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	h := p.header()
	for _, token := range h.Tokens() {
		if token.Type == hardware.TokenType {
			ours, err := hardware.ParseToken(token.JSON)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Unseal(t.Context(), card.SealLabel(h.UUID()), ours.Blob)
			return err
		}
	}
	t.Fatal("no token of ours")
	return nil
}

// TestDroppedChipIsCapped: a chip that pi-init gives up on the way, and whose card a
// person then opens, is closed before the system starts. Where that fails the console
// and the handover say so.
func TestDroppedChipIsCapped(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	p.answers = []string{p.people.recoveryKey(t)}

	p.deaf = &hardware.Error{Reason: hardware.ReasonBusy, Err: errors.New("no answer in time")}
	h := p.must().Handover
	if !h.Recovered || h.Uncapped {
		t.Errorf("%+v", h)
	}
	if !strings.Contains(p.people.text(), "chip=dropped registers=11") {
		t.Errorf("not said:\n%s", p.people.text())
	}
	if err := asRoot(t, p, b); hardware.ReasonOf(err) != hardware.ReasonPolicy || err == nil {
		t.Errorf("a chip dropped after measuring: %v", err)
	}

	p.deaf, p.broken = nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: errors.New("self-test")}
	if h := p.must().Handover; !h.Recovered || !h.Uncapped {
		t.Errorf("%+v", h)
	}
	if !strings.Contains(p.people.text(), "note=uncapped") {
		t.Errorf("not said:\n%s", p.people.text())
	}

	p.broken, p.chip = nil, nil
	if h := p.must().Handover; !h.Recovered || h.Uncapped {
		t.Errorf("no chip: %+v", h)
	}
}
