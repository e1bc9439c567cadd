package piscenario

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/update"
	"portcullis/lab/pi"
)

// TestUpdate: a new release is written beside the old one, started on trial,
// committed when it works, and then counted by the chip. The old release comes back neither
// as a bundle nor by putting its boot partition in force by hand.
func TestUpdate(t *testing.T) {
	t.Parallel()
	m, c, _ := goesOn(t)
	before := slots(t, m)
	if before.Active.Sequence != 1 || before.Active.Slot != card.SlotA || before.Trial != nil {
		t.Fatalf("%+v", before)
	}
	if r := portcullis(t, m, "update", oldOnStick); r.Exit != 0 || !strings.Contains(string(r.Stdout), "in use") {
		t.Errorf("the release in use: %d %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	install(t, m, newOnStick)
	expect(t, m, `portcullis: stage=slot [^\n]*slot=b trial=yes attempt=1`)
	expect(t, m, `release 2 in slot b works and is the active one now`)
	running(t, m)
	after := slots(t, m)
	if after.Running.Sequence != 2 || after.Active.Sequence != 2 || after.Active.Slot != card.SlotB || after.Trial != nil || after.Next != "b" {
		t.Errorf("%+v", after)
	}
	mountStick(t, m)
	says(t, portcullis(t, m, "update", oldOnStick), bundle.ReasonOld)
	powerOff(t, m)

	t.Run("the old release put back by hand is refused by the chip", func(t *testing.T) {
		c := cardOf(t, c)
		conf := confOf(t, c)
		s, err := conf.State()
		if err != nil {
			t.Fatal(err)
		}
		forged := card.NewState(card.Release{Sequence: before.Active.Sequence})
		if n, err := hex.Decode(forged.Active.Root[:], []byte(before.Active.Root)); n != len(forged.Active.Root) || err != nil {
			t.Fatal(err)
		}
		t.Logf("the card knew: %s", s)
		if err := conf.SetState(forged); err != nil {
			t.Fatal(err)
		}
		if err := conf.SetAutoboot(card.SlotA); err != nil {
			t.Fatal(err)
		}
		m := boot(t, c)
		expect(t, m, `portcullis: stage=card [^\n]*release=1 slot=a`)
		expect(t, m, `root-policy`)
		expect(t, m, `portcullis: type the recovery key`)
		if strings.Contains(m.Console().Text(), "portcullis: stage=unlock ") {
			t.Error("the old release opened the volume")
		}
	})
}

// TestUpdateFromAStick: plugging it in is enough, and it is not taken twice.
func TestUpdateFromAStick(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	stick := updateStick(t, pi.ImportLabel, map[string]string{"pi" + bundle.Extension: image(t, pi.Variant{Sequence: 2}).Bundle})
	m := boot(t, cardOf(t, p.Card), withDisk(stick))
	expect(t, m, `portcullis: import update=pi.pcupdate release=2 restart=yes`)
	expect(t, m, `portcullis: stage=slot [^\n]*slot=b trial=yes attempt=1`)
	expect(t, m, `release 2 in slot b works and is the active one now`)
	expect(t, m, `portcullis: import update=pi.pcupdate release=2 unchanged=yes`)
	if boots := m.Boots(); boots != 2 {
		t.Errorf("%d boots", boots)
	}
	powerOff(t, m)
}

// TestBrokenUpdateFallsBack: a release that starts and does not work gives way to
// the old one by itself, and the reason is kept.
func TestBrokenUpdateFallsBack(t *testing.T) {
	t.Parallel()
	m, _, _ := goesOn(t)
	install(t, m, brokenOnStick)
	for attempt := 1; attempt <= card.MaxAttempts; attempt++ {
		expect(t, m, fmt.Sprintf(`portcullis: stage=slot [^\n]*slot=b trial=yes attempt=%d`, attempt))
	}
	expect(t, m, `portcullis: stage=slot [^\n]*slot=a trial=no`)
	running(t, m)
	s := slots(t, m)
	if s.Running.Sequence != 1 || s.Trial != nil || s.LastFailure != card.ReasonTrialUnhealthy {
		t.Errorf("%+v", s)
	}
	says(t, portcullis(t, m, "update", "abort"), update.ReasonNoTrial)
	powerOff(t, m)
}
