package piinit

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// stage writes a release into slot B as the updater does, and puts it on trial.
func stage(t testing.TB, p *pi, b *built) {
	t.Helper()
	h := p.header()
	d := p.part(card.PartCrypt)
	key, _, err := h.Unlock(d, []byte(p.people.recoveryKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	v, err := h.Payload(d, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(b.root, card.SystemSize); err != nil {
		t.Fatal(err)
	}
	part := p.part(card.PartBootB)
	if err := fat.Build(part, fat.Options{Size: part.Size(), Label: card.LabelBootB}, b.boot); err != nil {
		t.Fatal(err)
	}
	if err := p.conf().Try(card.Installed{Slot: card.SlotB, Release: b.release}); err != nil {
		t.Fatal(err)
	}
}

func TestFirstBootThenNormalBoots(t *testing.T) {
	b := newSigner(t).build(t, 3)
	id, seed := operator(t)
	p := newPi(t, b, seed)
	r := p.must()
	h := r.Handover
	if !h.FirstBoot || h.UnlockedBy != card.UnlockedByEnrol || h.Slot != card.SlotA || h.Posture != string(hardware.PostureCardTheft) ||
		h.Platform != "self" || h.Backend != "tpm2" || r.Seed == nil {
		t.Errorf("%+v", h)
	}
	text := p.people.text()
	at := 0
	for _, stage := range []string{"card", "posture", "measure", "chip", "enrol-operator", "enrol-grow", "enrol-format", "enrol-copy", "enrol-verify",
		"enrol-seal", "cap", "enrol-data", "enrol-recovery", "enrol-commit", "data"} {
		n := strings.Index(text[at:], "portcullis: stage="+stage+" ")
		if n < 0 {
			t.Fatalf("no stage %s in its place:\n%s", stage, text)
		}
		at += n
	}
	recovery := p.people.recoveryKey(t)
	keyKept(t, p, id)
	var rec card.Enrolment
	if text, err := p.conf().Enrol(); err != nil || json.Unmarshal(text, &rec) != nil || rec.Volume != p.header().UUID() || !rec.Escrow {
		t.Errorf("%+v, %v", rec, err)
	}
	for range 2 {
		r = p.must()
		if h := r.Handover; h.FirstBoot || h.UnlockedBy != card.UnlockedByChip || h.Recovered || h.HeaderRepaired {
			t.Errorf("%+v", h)
		}
		if strings.Contains(p.people.text(), recovery) || len(p.people.asked) != 0 {
			t.Error("the recovery key is shown again, or somebody is asked")
		}
		for _, e := range p.rec.events {
			if e.data != nil {
				t.Errorf("an ordinary boot writes %d bytes at %d", len(e.data), e.off)
			}
		}
	}
	if p.chip.state.counter != 3 {
		t.Errorf("counter %d", p.chip.state.counter)
	}
}

// TestNothingUnsealsAfterTheBoot: the same chip, asked again as root of the running
// system could ask it, refuses.
func TestNothingUnsealsAfterTheBoot(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	for name := range map[string]bool{"first boot": true, "normal boot": true} {
		p.must()
		for _, token := range p.header().Tokens() {
			if token.Type != hardware.TokenType {
				continue
			}
			ours, err := hardware.ParseToken(token.JSON)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.chip.Unseal(t.Context(), card.SealLabel(p.header().UUID()), ours.Blob)
			if hardware.ReasonOf(err) != hardware.ReasonPolicy {
				t.Errorf("%s: %v", name, err)
			}
		}
		if tpmpolicy.Empty(p.chip.pcrs[card.PCRVolumeKey]) {
			t.Errorf("%s: the volume key is not measured", name)
		}
	}
}

// TestVolumeKeyAndSecretsStayInside: what the first boot prints and writes in the
// clear holds neither the volume key nor what opens it.
func TestVolumeKeyAndSecretsStayInside(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	h := p.header()
	recovery := []byte(p.people.recoveryKey(t))
	key, _, err := h.Unlock(p.part(card.PartCrypt), recovery)
	if err != nil {
		t.Fatal(err)
	}
	for at := range p.m.blocks {
		block := p.m.blocks[at]
		for _, secret := range [][]byte{key[:16], key[32:48], recovery[:17]} {
			if bytes.Contains(block, secret) {
				t.Errorf("a secret stands on the card in the clear, in block %d", at)
			}
		}
	}
	if strings.Count(p.people.text(), string(recovery)) != 1 {
		t.Error("the recovery key is not shown exactly once")
	}
}

func TestAttackClonedCardInAnotherPi(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	recovery := p.people.recoveryKey(t)
	clone := &pi{t: t, built: b, m: p.m.clone(), chip: newChip()}
	if err := clone.refused(string(ReasonUnlock)); !strings.Contains(err.Error(), string(hardware.ReasonForeignBlob)) {
		t.Errorf("%v", err)
	}
	if !strings.Contains(clone.people.asked[0], "type the recovery key") {
		t.Errorf("%q", clone.people.asked)
	}
	for _, e := range clone.rec.events {
		if e.data != nil {
			t.Error("a refused boot writes on the card")
		}
	}
	// Three wrong lines, the right one would be the fourth.
	wrong := strings.Repeat("cbdefghi-", 8)[:71]
	clone.answers = []string{wrong, "hunter2", "", recovery}
	clone.refused(string(ReasonUnlock))
	if len(clone.people.asked) != 3 {
		t.Errorf("asked %d times", len(clone.people.asked))
	}
	// Typed as people type.
	clone.answers = []string{wrong, strings.ToUpper(strings.ReplaceAll(recovery, "-", " "))}
	r := clone.must()
	if h := r.Handover; !h.Recovered || h.UnlockedBy != card.UnlockedByRecovery || h.ChipProblem != string(hardware.ReasonForeignBlob) {
		t.Errorf("%+v", h)
	}
	if strings.Contains(clone.people.text(), recovery) || strings.Contains(clone.people.text(), wrong) {
		t.Error("what was typed stands in the log")
	}
}

// TestAttackEditedBoot: what was changed on the boot partition or in front of the
// kernel is another measurement, and the chip keeps the key.
func TestAttackEditedBoot(t *testing.T) {
	s := newSigner(t)
	_, seed := operator(t)
	for name, edit := range map[string]func(p *pi){
		"initramfs": func(p *pi) {
			evil := *p.built
			evil.boot = map[string][]byte{}
			for n, f := range p.built.boot {
				evil.boot[n] = f
			}
			evil.boot[card.InitramfsFile] = []byte("evil")
			part := p.part(card.PartBootA)
			if err := fat.Build(part, fat.Options{Size: part.Size(), Label: card.LabelBootA}, evil.boot); err != nil {
				t.Fatal(err)
			}
		},
		"command line": func(p *pi) {
			evil := *p.built
			evil.cmdline += " init=/bin/sh"
			p.built = &evil
		},
	} {
		p := newPi(t, s.build(t, 3), seed)
		p.must()
		edit(p)
		if err := p.refused(string(ReasonUnlock)); !strings.Contains(err.Error(), string(hardware.ReasonPolicy)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAttackSelfMeasuredSoftwareOnMeasuringFirmware: who fills the registers himself
// does not open what was sealed where firmware measures.
func TestAttackSelfMeasuredSoftwareOnMeasuringFirmware(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.efi = true
	if h := p.must().Handover; h.Platform != "efi" || h.Posture != string(hardware.PostureFirmware) {
		t.Errorf("%+v", h)
	}
	p.must()
	p.efi = false
	p.refused(string(ReasonUnlock))
}

func TestAttackOldReleaseAfterANewerOneWasCommitted(t *testing.T) {
	s := newSigner(t)
	old := s.build(t, 3)
	_, seed := operator(t)
	p := newPi(t, old, seed)
	p.must()
	next := s.build(t, 4)
	stage(t, p, next)
	p.built = next
	if h := p.must().Handover; !h.Trial || h.Attempt != 1 || h.Slot != card.SlotB {
		t.Errorf("%+v", h)
	}
	if p.chip.state.counter != 3 {
		t.Error("a trial is counted")
	}
	if _, err := p.conf().Commit(); err != nil {
		t.Fatal(err)
	}
	// The power failed between the commit and the counter, or somebody edited the
	// card: pi-init says so, and leaves the counter to the health gate.
	if h := p.must().Handover; h.Trial || !h.Uncounted || !strings.Contains(p.people.text(), "note=uncounted ") {
		t.Errorf("%+v\n%s", h, p.people.text())
	}
	if p.chip.state.counter != 3 {
		t.Errorf("counter %d on the card's word alone", p.chip.state.counter)
	}
	p.chip.state.counter = 4 // Commit of package update
	if h := p.must().Handover; h.Uncounted {
		t.Errorf("%+v", h)
	}
	// Somebody puts the card's plain half back to the day before.
	before, err := card.StateImage(old.release)
	if err != nil {
		t.Fatal(err)
	}
	conf := p.part(card.PartConf)
	v, err := fat.Open(conf, conf.Size())
	if err != nil {
		t.Fatal(err)
	}
	at, _, err := v.Extent(card.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	conf.WriteAt(before, at)
	p.built = old
	if err := p.refused(string(ReasonUnlock)); !strings.Contains(err.Error(), string(hardware.ReasonPolicy)) {
		t.Errorf("%v", err)
	}
}

func TestTrialThatTheChipRefusesGoesBackByItself(t *testing.T) {
	s := newSigner(t)
	old := s.build(t, 3)
	_, seed := operator(t)
	p := newPi(t, old, seed)
	p.must()
	bad := s.build(t, 4)
	bad.boot[card.InitramfsFile] = []byte("not what the policy was signed for")
	stage(t, p, bad)
	p.built = bad
	for range card.MaxAttempts {
		p.refused(string(hardware.ReasonPolicy))
		if len(p.people.asked) != 0 {
			t.Error("a trial waits for a person")
		}
	}
	if _, err := p.boot(); !errors.Is(err, errRestart) || boot.ReasonOf(err) != ReasonTrial {
		t.Fatalf("%v", err)
	}
	a, err := p.conf().Autoboot()
	if err != nil || a.Partition != card.PartBootA {
		t.Errorf("%+v, %v", a, err)
	}
	p.built = old
	p.must()
	if st, err := p.conf().State(); err != nil || st.Trial != nil || st.LastFailure != card.ReasonTrialAttempts {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestRestartThatDoesNotResetTheChip: on the Pi's header a chip is reset by its supply
// alone. A restart without that is said in so many words, and costs a trial nothing.
func TestRestartThatDoesNotResetTheChip(t *testing.T) {
	s := newSigner(t)
	old := s.build(t, 3)
	_, seed := operator(t)
	p := newPi(t, old, seed)
	p.must()
	next := s.build(t, 4)
	stage(t, p, next)
	p.built, p.warm = next, true
	for range 2 * card.MaxAttempts {
		p.refused(string(ReasonNotReset))
	}
	p.warm = false // somebody pulls the plug
	if h := p.must().Handover; !h.Trial || h.Attempt != 1 || h.UnlockedBy != card.UnlockedByChip {
		t.Errorf("%+v", h)
	}

	p = newPi(t, old, seed)
	p.must()
	p.warm = true
	if err := p.refused(string(ReasonUnlock)); !strings.Contains(err.Error(), string(ReasonNotReset)) {
		t.Errorf("%v", err)
	}
}

func TestNoChipNoEnrolment(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.chip = nil
	p.refused(string(ReasonNoChip))
	if p.b.Stage() != StagePosture || !strings.Contains(p.people.text(), "posture=none") {
		t.Errorf("stage %s\n%s", p.b.Stage(), p.people.text())
	}
	nothingWritten(t, p)
}

func nothingWritten(t *testing.T, p *pi) {
	t.Helper()
	for _, e := range p.rec.events {
		if e.data != nil {
			t.Errorf("%d bytes written at %d", len(e.data), e.off)
		}
	}
}

func TestEnrolmentWithoutOperatorNeedsAPerson(t *testing.T) {
	b := newSigner(t).build(t, 3)
	for name, answers := range map[string][]string{"nobody": nil, "another word": {"yes"}, "lower case": {"enrol"}} {
		p := newPi(t, b, "")
		p.answers = answers
		p.refused(string(ReasonOperator))
		if want := "portcullis: no operator key on the card: type ENROL to go on without escrow (%d s left): "; p.people.asked[0] != want {
			t.Errorf("%s: %q", name, p.people.asked[0])
		}
		nothingWritten(t, p)
	}
	p := newPi(t, b, "")
	p.answers = []string{"ENROL"}
	if r := p.must(); r.Seed != nil {
		t.Error("settings out of nothing")
	}
	if e, err := p.conf().Escrow(); e != nil || err != nil {
		t.Errorf("escrow for nobody: %q, %v", e, err)
	}
	p.people.recoveryKey(t)
	// Settings that are wrong are none.
	p = newPi(t, b, "")
	conf := p.part(card.PartConf)
	v, err := fat.Open(conf, conf.Size())
	if err != nil {
		t.Fatal(err)
	}
	at, _, err := v.Extent(card.SeedFile)
	if err != nil {
		t.Fatal(err)
	}
	conf.WriteAt([]byte("schema: wrong\n"), at)
	p.refused(string(ReasonOperator))
}

func TestPrimaryHeaderDestroyed(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	uuid := p.header().UUID()
	for name, at := range map[string]int64{"primary": 0, "secondary": luks2.HeaderSize} {
		p.part(card.PartCrypt).WriteAt(bytes.Repeat([]byte{0xa5}, luks2.HeaderSize), at)
		if h := p.must().Handover; !h.HeaderRepaired || h.FirstBoot {
			t.Errorf("%s: %+v", name, h)
		}
		if !strings.Contains(p.people.text(), "stage=header") || !strings.Contains(p.people.text(), "repaired=yes") {
			t.Errorf("%s: not reported", name)
		}
		if h := p.must().Handover; h.HeaderRepaired || p.header().UUID() != uuid {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

// TestBothHeadersDestroyedIsNotAFirstBoot: a copy of the header may exist elsewhere.
func TestBothHeadersDestroyedIsNotAFirstBoot(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	for name, fill := range map[string]byte{"zeros": 0, "noise": 0xa5} {
		p := newPi(t, b, seed)
		p.must()
		backup := make([]byte, 2*luks2.HeaderSize)
		p.part(card.PartCrypt).ReadAt(backup, 0)
		p.part(card.PartCrypt).WriteAt(bytes.Repeat([]byte{fill}, len(backup)), 0)
		p.refused(string(ReasonLost))
		nothingWritten(t, p)
		p.part(card.PartCrypt).WriteAt(backup, 0)
		if p.must().Handover.FirstBoot {
			t.Errorf("%s: enrolled anew", name)
		}
		p.part(card.PartCrypt).WriteAt(bytes.Repeat([]byte{fill}, len(backup)), 0)
		p.answers = []string{"ENROL"}
		if !p.must().Handover.FirstBoot {
			t.Errorf("%s: not enrolled, although a person agreed", name)
		}
	}
}

func TestVolumesThatAreNotOursAreNeverWiped(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	for _, token := range map[string]string{
		"no token":             "",
		"token of systemd":     `{"type":"systemd-tpm2","keyslots":["0"]}`,
		"token we cannot read": `{"type":"portcullis-root","keyslots":["0"],"version":9}`,
	} {
		p := newPi(t, b, seed)
		p.must() // grows the card
		d := p.part(card.PartCrypt)
		key := make([]byte, luks2.VolumeKeySize)
		h, err := luks2.Format(d, d.Size(), luks2.Options{}, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.AddSlot(d, key, []byte("somebody's passphrase"), fastPeople); err != nil {
			t.Fatal(err)
		}
		if token != "" {
			if _, err := h.SetToken(-1, []byte(token)); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Write(d); err != nil {
			t.Fatal(err)
		}
		p.refused(string(ReasonUnlock))
		nothingWritten(t, p)
	}
}

// TestUnfinishedTokenBesideAFinishedOne: who finishes an enrolment leaves one token of
// ours. A second one in another state is no reason to wipe what the first one opens.
func TestUnfinishedTokenBesideAFinishedOne(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	d, h := p.part(card.PartCrypt), p.header()
	for _, token := range h.Tokens() {
		if token.Type != hardware.TokenType {
			continue
		}
		ours, err := hardware.ParseToken(token.JSON)
		if err != nil {
			t.Fatal(err)
		}
		ours.State = hardware.StateEnrolling
		text, err := ours.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.SetToken(-1, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Write(d); err != nil {
		t.Fatal(err)
	}
	if r := p.must().Handover; r.FirstBoot || r.UnlockedBy != card.UnlockedByChip {
		t.Errorf("%+v", r)
	}
}

func TestChipThatBreaksLeavesTheRecoveryKey(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	recovery := p.people.recoveryKey(t)
	p.chip = nil
	p.answers = []string{recovery}
	if h := p.must().Handover; !h.Recovered || h.Posture != string(hardware.PostureNone) {
		t.Errorf("%+v", h)
	}
}

func TestSeedOfAnotherReleaseIsNotCopied(t *testing.T) {
	s := newSigner(t)
	_, seed := operator(t)
	p := newPi(t, s.build(t, 3), seed)
	evil := bytes.Clone(p.built.root)
	evil[5*4096] ^= 1
	p.part(card.PartSeed).WriteAt(evil, 0)
	p.refused(string(ReasonSeedRoot))
	if committed(p) != "" {
		t.Error("committed")
	}
}

func TestCardTooSmall(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.m.size = 1200 << 20
	p.refused(string(ReasonCardSmall))
}

func TestUnknownReleaseAndCommandLine(t *testing.T) {
	s := newSigner(t)
	_, seed := operator(t)
	p := newPi(t, s.build(t, 3), seed)
	p.built = s.build(t, 3)
	p.refused(card.ReasonSlotUnknown)
	nothingWritten(t, p)
	evil := *p.built
	evil.cmdline = "rdinit=/bin/sh " + evil.cmdline
	p.built = &evil
	p.refused(string(ReasonModel))
}

// TestVolumeOfSystemd: a volume whose tokens are systemd-cryptenroll's alone opens by
// its chip's token, and where that fails by its recovery key.
func TestVolumeOfSystemd(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	recovery := p.people.recoveryKey(t)
	h, d := p.header(), p.part(card.PartCrypt)
	key, _, err := h.Unlock(d, []byte(recovery))
	if err != nil {
		t.Fatal(err)
	}
	p.systemd = []byte("what the chip gave systemd")
	slot, err := h.AddSlot(d, key, p.systemd, fastPeople)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range h.Tokens() {
		if token.Type == hardware.TokenType {
			if err := h.KillSlot(d, token.Slots[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := h.SetToken(-1, []byte(`{"type":"systemd-tpm2","keyslots":["`+strconv.Itoa(slot)+`"]}`)); err != nil {
		t.Fatal(err)
	}
	if err := h.Write(d); err != nil {
		t.Fatal(err)
	}
	if got := p.must().Handover; got.UnlockedBy != card.UnlockedBySystemd || got.Recovered {
		t.Errorf("%+v", got)
	}
	if tpmpolicy.Empty(p.chip.pcrs[card.PCRVolumeKey]) {
		t.Error("the volume key is not measured")
	}
	p.systemd, p.answers = nil, []string{recovery}
	if got := p.must().Handover; !got.Recovered {
		t.Errorf("%+v", got)
	}
}
