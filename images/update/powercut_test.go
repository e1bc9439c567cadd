package update

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"portcullis/images/bundle/bundletest"
	"portcullis/images/card"
	"portcullis/images/card/cardtest"
)

// The power is cut at every write and sync of an update, its trial and its commit,
// with every sector under way old, new or torn. Whatever is left: one complete
// release is selected; the old one is whole until the commit; the same
// update, started again, ends in the new one.
func TestPowerCutsOfAnUpdate(t *testing.T) {
	k, fresh := bundletest.NewKey(t), newCard(t)
	b := k.Bundle(t, 2, nil)
	life := func(c *simCard) (err error) {
		if _, err = apply(c, handover(k, card.SlotA, 1), b); err != nil {
			return err
		}
		conf, err := card.OpenConf(c.conf, card.ConfSize)
		if err != nil {
			return err
		}
		s, err := conf.State()
		if err != nil {
			return err
		}
		if s, _, err = s.Boot(bundletest.Release(2)); err != nil {
			return err
		}
		if err := conf.SetState(s); err != nil {
			return err
		}
		_, err = commitNow(c, handover(k, card.SlotB, 2), nil)
		return err
	}
	whole := &cardtest.Power{CutAt: -1}
	c := fresh.clone(whole)
	if err := life(c); err != nil {
		t.Fatal(err)
	}
	if got := boots(t, c); got.Sequence != 2 {
		t.Fatalf("%+v", got)
	}
	for cut := range whole.Ops {
		for seed := range uint64(2) {
			r := rand.New(rand.NewPCG(uint64(cut), seed))
			c := fresh.clone(&cardtest.Power{CutAt: cut})
			if err := life(c); !errors.Is(err, cardtest.ErrPower) {
				t.Fatalf("cut %d: %v", cut, err)
			}
			c.restart(r)
			state, err := cardtest.OpenConf(t, c.conf).State()
			if err != nil {
				t.Fatalf("cut %d: %v", cut, err)
			}
			boots(t, c)
			root := bundletest.RootImage(1)
			if !same(t, c.boot[card.SlotA], bundletest.BootImage(1), card.BootSize) || !same(t, c.system[card.SlotA], bytes.NewReader(root), int64(len(root))) {
				t.Fatalf("cut %d: the old release was touched; %s", cut, state)
			}
			h := started(t, k, c)
			if h.Sequence == 1 {
				if _, err := apply(c, h, b); err != nil {
					t.Fatalf("cut %d: again: %v", cut, err)
				}
				h = started(t, k, c)
			}
			if _, err := commitNow(c, h, nil); err != nil {
				t.Fatalf("cut %d: commit: %v", cut, err)
			}
			if h = started(t, k, c); h.Sequence != 2 || h.Trial {
				t.Fatalf("cut %d: ends with %+v", cut, h)
			}
		}
	}
	t.Logf("%d places", whole.Ops)
}

// The same while the update replaces one that is selected already: the slot that the
// firmware would start is the one that is written.
func TestPowerCutsOfAReplacedUpdate(t *testing.T) {
	k, fresh := bundletest.NewKey(t), newCard(t)
	h := handover(k, card.SlotA, 1)
	if _, err := apply(fresh, h, k.Bundle(t, 2, nil)); err != nil {
		t.Fatal(err)
	}
	b := k.Bundle(t, 5, nil)
	whole := &cardtest.Power{CutAt: -1}
	if _, err := apply(fresh.clone(whole), h, b); err != nil {
		t.Fatal(err)
	}
	for cut := range whole.Ops {
		for seed := range uint64(2) {
			c := fresh.clone(&cardtest.Power{CutAt: cut})
			if _, err := apply(c, h, b); !errors.Is(err, cardtest.ErrPower) {
				t.Fatalf("cut %d: %v", cut, err)
			}
			c.restart(rand.New(rand.NewPCG(uint64(cut), seed)))
			boots(t, c)
		}
	}
	t.Logf("%d places", whole.Ops)
}
