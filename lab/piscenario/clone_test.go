package piscenario

import (
	"encoding/json"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/luks2"
)

const headerSize = luks2.HeaderSize

const recoveryPrompt = `type the recovery key \(\d+ s left\): `

// TestAttackClonedCardWithAnotherTPM: the other Pi's chip does not open the card. Its
// owner does, with the recovery key; one command binds the card to the new chip, and
// the boot after it asks nobody.
func TestAttackClonedCardWithAnotherTPM(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	c := otherChip(t, p.Card)
	var dir string
	m := boot(t, c, inDir(&dir))
	expect(t, m, `portcullis: failed stage=unlock [^\n]*reason=root-[a-z-]+`)
	expect(t, m, recoveryPrompt)
	mustSend(t, m.Send("not a recovery key\n"))
	expect(t, m, `portcullis: note=recovery [^\n]*luks2-recovery-key`)
	expect(t, m, recoveryPrompt)
	mustSend(t, m.Send(p.Recovery+"\n"))
	expect(t, m, `portcullis: stage=unlock [^\n]*by=recovery`)
	expect(t, m, `portcullis: stage=switch-root`)
	if text := m.Console().Text(); strings.Contains(text, p.Recovery) || strings.Contains(text, "not a recovery key\n") {
		t.Error("what was typed is echoed")
	}
	running(t, m)
	var h card.Handover
	if err := json.Unmarshal([]byte(output(t, m, "cat", card.HandoverPath)), &h); err != nil {
		t.Fatal(err)
	}
	if !h.Recovered || h.ChipProblem == "" {
		t.Errorf("handover %+v", h)
	}
	r := command(t, dir, []byte(p.Recovery+"\n"), "/usr/bin/portcullis", "root", "rearm")
	if r.Exit != 0 {
		t.Fatalf("rearm: exit %d: %s%s%s", r.Exit, r.Stdout, r.Stderr, r.Error)
	}
	t.Logf("%s", r.Stdout)
	powerOff(t, m)

	m = boot(t, c)
	expect(t, m, `portcullis: stage=unlock [^\n]*by=tpm2`)
	expect(t, m, `portcullis: stage=switch-root`)
	m.Kill()
	// Back in the first Pi the old chip has nothing to give any more.
	c.TPM = cardOf(t, p.Card).TPM
	m = boot(t, c)
	expect(t, m, `portcullis: failed stage=unlock`)
	expect(t, m, recoveryPrompt)
}

func mustSend(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWrongRecoveryKeysRestart: after three lines the machine restarts; there is
// nothing to log in to.
func TestWrongRecoveryKeysRestart(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	m := boot(t, otherChip(t, p.Card))
	for range 3 {
		expect(t, m, recoveryPrompt)
		mustSend(t, m.Send("open sesame\n"))
	}
	expect(t, m, `portcullis: failed stage=unlock [^\n]*reason=unlock-failed`)
	expect(t, m, `portcullis: note=restart`)
	expect(t, m, `portcullis: stage=init`)
	if m.Boots() != 2 {
		t.Errorf("%d boots", m.Boots())
	}
}

// TestNoOperatorNoHeadlessEnrolment: without an operator's key and without a person
// nothing is enrolled; with a person who agrees, it is.
func TestNoOperatorNoHeadlessEnrolment(t *testing.T) {
	t.Parallel()
	c := fresh(t, variant)
	if err := c.Seed(""); err != nil {
		t.Fatal(err)
	}
	m := boot(t, c)
	const prompt = `portcullis: no operator key on the card: type ENROL to go on without escrow \(\d+ s left\): `
	expect(t, m, prompt)
	mustSend(t, m.Send("no\n"))
	expect(t, m, `portcullis: failed stage=enrol-operator [^\n]*reason=enrol-operator`)
	expect(t, m, prompt)
	mustSend(t, m.Send("ENROL\n"))
	expect(t, m, `portcullis: recovery key \(write it down, it is not shown again\):`)
	expect(t, m, `portcullis: stage=enrol-commit`)
	expect(t, m, `portcullis: note=no-settings`)
}

// TestNoChipNoEnrolment: without a TPM the Pi says so, and stops.
func TestNoChipNoEnrolment(t *testing.T) {
	t.Parallel()
	c := fresh(t, variant)
	c.TPM = ""
	m := boot(t, c)
	expect(t, m, `portcullis: stage=posture [^\n]*posture=none`)
	expect(t, m, `portcullis: failed stage=posture [^\n]*reason=root-absent`)
}
