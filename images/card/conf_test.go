package card_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"portcullis/images/card"
	"portcullis/images/card/cardtest"
	"portcullis/images/fat"
)

func release(n byte) card.Release { return card.Release{Sequence: uint64(n), Root: [32]byte{n, n, n}} }

// confDisk is the configuration partition of a fresh card.
func confDisk(t testing.TB) *cardtest.Disk {
	t.Helper()
	return cardtest.Conf(t, &cardtest.Power{CutAt: -1}, release(1))
}

func TestFreshConf(t *testing.T) {
	c := cardtest.OpenConf(t, confDisk(t))
	s, err := c.State()
	if err != nil || s.Active != (card.Installed{Slot: card.SlotA, Release: release(1)}) || s.Trial != nil {
		t.Errorf("%s %v", s, err)
	}
	if a, err := c.Autoboot(); err != nil || a.Partition != card.PartBootA {
		t.Errorf("%+v %v", a, err)
	}
	if seed, err := c.Seed(); seed != nil || err != nil {
		t.Errorf("%+v %v", seed, err)
	}
	if b, err := c.Escrow(); b != nil || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if err := c.WriteEscrow([]byte("armoured\n")); err != nil {
		t.Fatal(err)
	}
	if b, err := c.Escrow(); string(b) != "armoured\n" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if err := c.WriteEnrol(make([]byte, card.EnrolSize+1)); err == nil {
		t.Error("a record that does not fit was written")
	}
	if b, err := c.Enrol(); b != nil || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

func TestConfRefusals(t *testing.T) {
	var e *card.Error
	if _, err := card.OpenConf(cardtest.New(&cardtest.Power{CutAt: -1}, 1<<20), 1<<20); !errors.As(err, &e) || e.Reason != card.ReasonConfUnreadable {
		t.Errorf("no file system: %v", err)
	}
	files, _ := card.ConfFiles(release(1))
	for name, change := range map[string]func(){
		"no state":     func() { delete(files, card.StateFile) },
		"short state":  func() { files[card.StateFile] = make([]byte, 1024) },
		"broken state": func() { files[card.StateFile] = make([]byte, card.StateSize) },
	} {
		change()
		d := cardtest.New(&cardtest.Power{CutAt: -1}, card.ConfSize)
		if err := fat.Build(d, fat.Options{Size: card.ConfSize}, files); err != nil {
			t.Fatal(err)
		}
		c, err := card.OpenConf(d, d.Size())
		want := card.ReasonConfUnreadable
		if name == "broken state" {
			_, err = c.State()
			want = card.ReasonStateUnreadable
		}
		if !errors.As(err, &e) || e.Reason != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// bootable says which release the firmware would start, and checks that the state
// knows it: pi-init would go on.
func bootable(t *testing.T, c *card.Conf) card.Installed {
	t.Helper()
	s, err := c.State()
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Autoboot()
	if err != nil {
		t.Fatal(err)
	}
	slot, err := a.Slot()
	if err != nil {
		t.Fatal(err)
	}
	i := s.Active
	if slot != i.Slot {
		if s.Trial == nil || s.Trial.Slot != slot {
			t.Fatalf("the firmware starts slot %s, the state knows: %s", slot, s)
		}
		i = s.Trial.Installed
	}
	if _, _, err := s.Boot(i.Release); err != nil {
		t.Fatal(err)
	}
	return i
}

// The power is cut at every write and every sync of a trial's life, with every
// sector that was under way old, new or torn: the firmware always starts a
// release that the state knows, and the old one until it is committed.
func TestPowerCutsOfTheSlotState(t *testing.T) {
	fresh := confDisk(t)
	next := card.Installed{Slot: card.SlotB, Release: release(2)}
	for name, life := range map[string]struct {
		steps func(c *card.Conf) error
		ends  []card.Release // what may be started in the end
	}{
		"committed": {func(c *card.Conf) error {
			if err := c.Try(next); err != nil {
				return err
			}
			if err := startTrial(c, 2); err != nil {
				return err
			}
			_, err := c.Commit()
			return err
		}, []card.Release{release(2)}},
		"dropped": {func(c *card.Conf) error {
			if err := c.Try(next); err != nil {
				return err
			}
			if err := startTrial(c, 1); err != nil {
				return err
			}
			return c.Drop(card.ReasonTrialAborted)
		}, []card.Release{release(1)}},
	} {
		whole := &cardtest.Power{CutAt: -1}
		d := fresh.Clone(whole)
		if err := life.steps(cardtest.OpenConf(t, d)); err != nil {
			t.Fatal(err)
		}
		if got := bootable(t, cardtest.OpenConf(t, d)); got.Release != life.ends[0] {
			t.Errorf("%s: ends with %+v", name, got)
		}
		for cut := range whole.Ops {
			for seed := range uint64(40) {
				d := fresh.Clone(&cardtest.Power{CutAt: cut})
				if err := life.steps(cardtest.OpenConf(t, d)); !errors.Is(err, cardtest.ErrPower) {
					t.Fatalf("%s, cut %d: %v", name, cut, err)
				}
				d.Restart(&cardtest.Power{CutAt: -1}, rand.New(rand.NewPCG(uint64(cut), seed)))
				bootable(t, cardtest.OpenConf(t, d))
			}
		}
		t.Logf("%s: %d places", name, whole.Ops)
	}
}

// startTrial is what pi-init writes in n boots of the release on trial.
func startTrial(c *card.Conf, n int) error {
	for range n {
		s, err := c.State()
		if err != nil {
			return err
		}
		s, _, err = s.Boot(s.Trial.Release)
		if err != nil {
			return err
		}
		if err := c.SetState(s); err != nil {
			return err
		}
	}
	return nil
}

// The updates of a card's whole life never write outside the files' sectors.
func TestOnlyTheFilesSectorsAreWritten(t *testing.T) {
	d := confDisk(t)
	before := make([]byte, card.ConfSize)
	if _, err := d.ReadAt(before, 0); err != nil {
		t.Fatal(err)
	}
	c := cardtest.OpenConf(t, d)
	if err := errors.Join(c.Try(card.Installed{Slot: card.SlotB, Release: release(2)}), c.Drop(card.ReasonTrialAborted),
		c.WriteEscrow(bytes.Repeat([]byte("e"), card.EscrowSize)), c.WriteEnrol(bytes.Repeat([]byte("r"), card.EnrolSize))); err != nil {
		t.Fatal(err)
	}
	after := make([]byte, card.ConfSize)
	if _, err := d.ReadAt(after, 0); err != nil {
		t.Fatal(err)
	}
	fs, err := fat.Open(bytes.NewReader(before), card.ConfSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{card.AutobootFile, card.StateFile, card.EscrowFile, card.EnrolFile} {
		at, n, err := fs.Extent(name)
		if err != nil {
			t.Fatal(err)
		}
		copy(after[at:at+n], before[at:at+n])
	}
	if !bytes.Equal(before, after) {
		t.Error("something else on the partition was written")
	}
}
