package piinit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/identity"
	"portcullis/images/luks2"
)

// record is first boot's record as the card has it.
func record(t *testing.T, p *pi) *card.Enrolment {
	t.Helper()
	text, err := p.conf().Enrol()
	if err != nil {
		t.Fatal(err)
	}
	e, err := card.ParseEnrolment(text)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestAttackWipedCardIsSeenAsEnrolledAgain: a card without headers and without a record
// is enrolled like a new one. The chip remembers that it is not, and everybody is told.
func TestAttackWipedCardIsSeenAsEnrolledAgain(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	if h := p.must().Handover; h.ReEnrolled || record(t, p).ReEnrolled || strings.Contains(p.people.text(), "re-enrolled") {
		t.Errorf("a new card on a new chip: %+v", h)
	}
	if h := p.must().Handover; h.ReEnrolled || h.FirstBoot {
		t.Errorf("an ordinary boot: %+v", h)
	}
	p.part(card.PartCrypt).WriteAt(make([]byte, 2*luks2.HeaderSize), 0)
	if err := p.conf().WriteEnrol(nil); err != nil {
		t.Fatal(err)
	}
	h := p.must().Handover
	if !h.FirstBoot || !h.ReEnrolled || !record(t, p).ReEnrolled {
		t.Errorf("%+v", h)
	}
	if !strings.Contains(p.people.text(), "portcullis: note=re-enrolled ") {
		t.Errorf("the console does not say it:\n%s", p.people.text())
	}
	// Where the attacker leaves the beginning of an enrolment behind, to look like a power cut.
	p = newPi(t, b, seed)
	p.must()
	d := p.part(card.PartCrypt)
	if _, err := luks2.Format(d, d.Size(), luks2.Options{}, make([]byte, luks2.VolumeKeySize)); err != nil {
		t.Fatal(err)
	}
	if err := p.conf().WriteEnrol(nil); err != nil {
		t.Fatal(err)
	}
	if h = p.must().Handover; !h.FirstBoot || !h.ReEnrolled {
		t.Errorf("%+v", h)
	}
}

// TestFirstBootIsRemembered: the running system knows in every later boot how its card was
// enrolled, and not from the plain part of the card.
func TestFirstBootIsRemembered(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, dataDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if e, err := remember(root, nil); e != nil || err != nil {
		t.Errorf("no record: %+v, %v", e, err)
	}
	first := card.Enrolment{Volume: "v", ReEnrolled: true}.Encode()
	for _, onCard := range [][]byte{append(first, '\n', '\n'), card.Enrolment{Volume: "w"}.Encode(), []byte("{}"), nil} {
		e, err := remember(root, onCard)
		if err != nil || e == nil || !e.ReEnrolled || e.Volume != "v" {
			t.Errorf("%+v, %v", e, err)
		}
	}
	link := filepath.Join(root, dataDir, enrolFile)
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", link); err != nil {
		t.Fatal(err)
	}
	if e, err := remember(root, first); err == nil {
		t.Errorf("through a link: %+v", e)
	}
}

// TestAttackAnotherVolumeOnTheSameChip: who had the Pi for a while makes a volume of
// theirs on its chip and puts it in the place of ours. It opens, the signed system starts:
// the register of the volume key has another value, and a record that the operator kept
// elsewhere tells.
func TestAttackAnotherVolumeOnTheSameChip(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	ours := newPi(t, b, seed)
	first := ours.must().Handover
	kept := &identity.Record{Enrolled: record(t, ours)}
	if kept.Enrolled.VolumePCR == "" || kept.Enrolled.VolumePCR != first.VolumePCR || kept.Enrolled.Volume != first.Volume {
		t.Fatalf("%+v, %+v", kept.Enrolled, first)
	}
	now := func(h *card.Handover, e *card.Enrolment) *identity.Record {
		return &identity.Record{Booted: &identity.Boot{Volume: h.Volume, VolumePCR: h.VolumePCR}, Enrolled: e}
	}
	h := ours.must().Handover
	if d := now(h, kept.Enrolled).Differences(kept); len(d) != 0 || now(h, kept.Enrolled).VolumeChanged() {
		t.Errorf("the same volume: %v", d)
	}

	theirs := &pi{t: t, built: b, m: flashed(t, b, seed), chip: ours.chip}
	theirs.must()
	evil := make([]byte, 1<<20)
	from, to := theirs.part(card.PartCrypt), ours.part(card.PartCrypt)
	if from.bytes != to.bytes {
		t.Fatal("other partitions")
	}
	for at := int64(0); at < from.bytes; at += int64(len(evil)) {
		n := min(int64(len(evil)), from.bytes-at)
		from.ReadAt(evil[:n], at)
		if _, err := to.WriteAt(evil[:n], at); err != nil {
			t.Fatal(err)
		}
	}
	ours.chip = theirs.chip
	h = ours.must().Handover
	if h.UnlockedBy != card.UnlockedByChip || h.FirstBoot {
		t.Fatalf("the attack does not work any more, which is better than this test: %+v", h)
	}
	if d := now(h, record(t, theirs)).Differences(kept); len(d) != 2 || d[1].Field != "volume_pcr" || d[1].Now != h.VolumePCR {
		t.Errorf("not seen: %v", d)
	}
	if !now(h, kept.Enrolled).VolumeChanged() {
		t.Error("the record on the card is not compared")
	}
	// With the old UUID in the header, the register still differs.
	h.Volume = first.Volume
	if d := now(h, kept.Enrolled).Differences(kept); len(d) != 1 || d[0].Field != "volume_pcr" {
		t.Errorf("not seen: %v", d)
	}
}
