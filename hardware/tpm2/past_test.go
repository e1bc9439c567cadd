package tpm2

import "testing"

// TestPast: a chip remembers that it has sealed, counted and attested, also behind a
// restart, and a new one remembers nothing.
func TestPast(t *testing.T) {
	w := newWorld(t)
	c := w.start(t, w.config(t, 5))
	past := func() Past {
		t.Helper()
		p, err := c.Past(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := past(); p != (Past{}) {
		t.Errorf("a new chip: %+v", p)
	}
	w.sealed(t)
	c = w.start(t, w.config(t, 5))
	p := past()
	if p.Sealed == 0 || p.Released != 5 || p.Attested {
		t.Errorf("after sealing: %+v", p)
	}
	if _, err := c.Enrol(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	c = w.start(t, w.config(t, 5))
	if p := past(); !p.Attested || p.Sealed == 0 {
		t.Errorf("after the system ran: %+v", p)
	}
	// Somebody else's key at our handle is not ours.
	cfg := w.config(t, 5)
	cfg.AK = 0x81008005
	other := open(t, w.chip.Path, cfg)
	if _, err := other.makePrimary(0x40000001, srkTemplate(), cfg.AK, true); err != nil {
		t.Fatal(err)
	}
	if p, err := other.Past(t.Context()); err != nil || p.Attested {
		t.Errorf("another's key: %+v, %v", p, err)
	}
}
