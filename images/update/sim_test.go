package update

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"testing"

	"portcullis/images/bundle/bundletest"
	"portcullis/images/card"
	"portcullis/images/card/cardtest"
)

// simDisk is a simulated partition.
type simDisk struct {
	*cardtest.Disk
	lies bool // reads back other bytes than were written
}

func (simDisk) Refresh() error { return nil }
func (simDisk) Close() error   { return nil }

func (d simDisk) ReadAt(b []byte, at int64) (int, error) {
	n, err := d.Disk.ReadAt(b, at)
	if d.lies && n > 7 {
		b[7] ^= 1
	}
	return n, err
}

// simCard is a simulated card of four parts that matter here.
type simCard struct {
	conf         *cardtest.Disk
	boot, system map[card.Slot]*cardtest.Disk
	lies         bool
	opened       []card.Slot // slots whose parts were opened
}

const simSystem = 4 << 20 // bytes of a system slot here

func (c *simCard) Conf() (Device, error) { return simDisk{c.conf, false}, nil }
func (c *simCard) Boot(s card.Slot) (Device, error) {
	c.opened = append(c.opened, s)
	return simDisk{c.boot[s], c.lies}, nil
}
func (c *simCard) System(s card.Slot) (Device, error) { return simDisk{c.system[s], c.lies}, nil }

func (c *simCard) disks() []*cardtest.Disk {
	return []*cardtest.Disk{c.conf, c.boot[card.SlotA], c.boot[card.SlotB], c.system[card.SlotA], c.system[card.SlotB]}
}

// newCard is a card with release 1 in slot a and rubbish in slot b.
func newCard(t testing.TB) *simCard {
	t.Helper()
	p := &cardtest.Power{CutAt: -1}
	c := &simCard{conf: cardtest.Conf(t, p, bundletest.Release(1)), boot: map[card.Slot]*cardtest.Disk{}, system: map[card.Slot]*cardtest.Disk{}}
	for _, s := range []card.Slot{card.SlotA, card.SlotB} {
		c.boot[s], c.system[s] = cardtest.New(p, card.BootSize), cardtest.New(p, simSystem)
	}
	head := make([]byte, 32<<10)
	if _, err := bundletest.BootImage(1).ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	c.boot[card.SlotA].Fill(head, 0)
	c.system[card.SlotA].Fill(bundletest.RootImage(1), 0)
	c.boot[card.SlotB].Fill(bytes.Repeat([]byte("rubbish "), 9999), 12345)
	c.system[card.SlotB].Fill(bytes.Repeat([]byte("rubbish "), 9999), 54321)
	return c
}

func (c *simCard) clone(p *cardtest.Power) *simCard {
	n := &simCard{conf: c.conf.Clone(p), boot: map[card.Slot]*cardtest.Disk{}, system: map[card.Slot]*cardtest.Disk{}}
	for _, s := range []card.Slot{card.SlotA, card.SlotB} {
		n.boot[s], n.system[s] = c.boot[s].Clone(p), c.system[s].Clone(p)
	}
	return n
}

func (c *simCard) restart(r *rand.Rand) {
	p := &cardtest.Power{CutAt: -1}
	for _, d := range c.disks() {
		d.Restart(p, r)
	}
}

// boots says which release the firmware starts, and fails where that release is
// not complete in its slot or where pi-init would not go on.
func boots(t testing.TB, c *simCard) card.Installed {
	t.Helper()
	conf := cardtest.OpenConf(t, c.conf)
	s, err := conf.State()
	if err != nil {
		t.Fatal(err)
	}
	a, err := conf.Autoboot()
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
			t.Fatalf("the firmware starts slot %s; the state: %s", slot, s)
		}
		i = s.Trial.Installed
	}
	if i.Release != bundletest.Release(i.Sequence) {
		t.Fatalf("release %d under the name of another", i.Sequence)
	}
	if !same(t, c.boot[slot], bundletest.BootImage(i.Sequence), card.BootSize) {
		t.Fatalf("slot %s is started, its boot partition is not release %d", slot, i.Sequence)
	}
	root := bundletest.RootImage(i.Sequence)
	if !same(t, c.system[slot], bytes.NewReader(root), int64(len(root))) {
		t.Fatalf("slot %s is started, its system is not release %d", slot, i.Sequence)
	}
	return i
}

func same(t testing.TB, d *cardtest.Disk, want io.ReaderAt, size int64) bool {
	t.Helper()
	got, expected := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < size; at += 1 << 20 {
		n := min(1<<20, size-at)
		if _, err := d.ReadAt(got[:n], at); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := want.ReadAt(expected[:n], at); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:n], expected[:n]) {
			return false
		}
	}
	return true
}

// handover is what pi-init says when the release sequence runs.
func handover(k bundletest.Key, slot card.Slot, sequence uint64) *card.Handover {
	r := bundletest.Release(sequence)
	h := &card.Handover{Model: card.ModelQEMU, Profile: card.ProfileDev, Sequence: sequence, RootHash: hex.EncodeToString(r.Root[:]),
		Slot: slot, Threshold: k.Trust.Threshold}
	for _, key := range k.Trust.ReleaseKeys {
		h.ReleaseKeys = append(h.ReleaseKeys, key)
	}
	return h
}

// started is what pi-init does with the card at a boot of what the firmware
// starts, up to the release that goes on.
func started(t testing.TB, k bundletest.Key, c *simCard) *card.Handover {
	t.Helper()
	for range card.MaxAttempts + 2 {
		i := boots(t, c)
		conf := cardtest.OpenConf(t, c.conf)
		s, err := conf.State()
		if err != nil {
			t.Fatal(err)
		}
		next, d, err := s.Boot(i.Release)
		if err != nil {
			t.Fatal(err)
		}
		if d.Back {
			if err := conf.Drop(d.Reason); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if d.Write {
			if err := conf.SetState(next); err != nil {
				t.Fatal(err)
			}
		}
		h := handover(k, d.Slot, i.Sequence)
		h.Trial, h.Attempt = d.Trial, d.Attempt
		return h
	}
	t.Fatal("no release goes on")
	return nil
}

func apply(c *simCard, h *card.Handover, b []byte) (Result, error) {
	return Apply(context.Background(), bytes.NewReader(b), Options{Card: c, Running: h})
}
