package continuity

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/attestserver/protocol"
)

var (
	session = strings.Repeat("a", 26)
	another = strings.Repeat("b", 26)
)

// caller is a connection of an agent that has the epoch has, nil for none.
type caller struct {
	has    *protocol.Epoch
	secret byte
}

func (c caller) Shows(e *protocol.Epoch) bool {
	return c.has != nil && c.has.Proof(nil) == e.Proof(nil) && c.has.Number == e.Number
}

func (c caller) Next(before *protocol.Epoch) (*protocol.Epoch, error) {
	return protocol.NextEpoch(before, session, [32]byte{c.secret}, protocol.Binding{c.secret})
}

func (c caller) number() uint64 {
	if c.has == nil {
		return 0
	}
	return c.has.Number
}

func keeper(t *testing.T) *Keeper {
	t.Helper()
	k, err := Open(filepath.Join(t.TempDir(), "epoch.json"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func accept(t *testing.T, k *Keeper, c caller) *protocol.Epoch {
	t.Helper()
	e, err := k.Accept(session, c.number(), c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func again(t *testing.T, k *Keeper) *Keeper {
	t.Helper()
	o, err := Open(k.path)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// own is the agent's epoch after a claim that it knows to be granted.
func own(t *testing.T, c caller) *protocol.Epoch {
	t.Helper()
	e, err := protocol.NextEpoch(c.has, session, [32]byte{c.secret}, protocol.Binding{c.secret})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Whatever gets lost between the two, an agent that has not missed anything it
// was sent gets on; also over restarts of attestd at any point.
func TestHonestAgentGetsOn(t *testing.T) {
	for _, heard := range []bool{true, false} {
		for _, confirmed := range []bool{true, false} {
			for _, restart := range []bool{true, false} {
				k := keeper(t)
				var has *protocol.Epoch
				for i := range byte(6) {
					c := caller{has, i + 1}
					e := accept(t, k, c)
					if heard || i%2 == 0 {
						has = own(t, c)
						if !has.Same(e) {
							t.Fatal("the two ends have different epochs")
						}
						if confirmed {
							if err := k.Confirm(e); err != nil {
								t.Fatal(err)
							}
						}
					}
					if restart {
						k = again(t, k)
					}
				}
				if has.Number < 3 {
					t.Errorf("heard %v, confirmed %v, restart %v: epoch %d after 6 claims", heard, confirmed, restart, has.Number)
				}
			}
		}
	}
}

func TestAttack_WhoHasNotFollowedIsRefused(t *testing.T) {
	k := keeper(t)
	first := own(t, caller{nil, 1})
	if err := k.Confirm(accept(t, k, caller{nil, 1})); err != nil {
		t.Fatal(err)
	}
	second := own(t, caller{first, 2})
	if err := k.Confirm(accept(t, k, caller{first, 2})); err != nil {
		t.Fatal(err)
	}
	accept(t, k, caller{second, 3}) // granted; the agent may or may not have heard
	var zero [32]byte
	for name, c := range map[string]caller{
		"begins anew":               {nil, 9},
		"copied the epoch before":   {first, 9},
		"knows the number only":     {protocol.OldEpoch(2, zero), 9},
		"knows the next number":     {protocol.OldEpoch(3, zero), 9},
		"is ahead":                  {protocol.OldEpoch(4, second.Key()), 9},
		"was at the exchange after": {own(t, caller{second, 4}), 9},
	} {
		for _, k := range []*Keeper{k, again(t, k)} {
			if _, err := k.Accept(session, c.number(), c); !errors.Is(err, ErrBroken) {
				t.Errorf("one who %s: %v", name, err)
			}
		}
	}
	// They have spoilt nothing for the agent.
	accept(t, k, caller{second, 5})
	// And in a new boot session nobody brings an epoch from before.
	if _, err := k.Accept(another, 2, caller{second, 6}); !errors.Is(err, ErrBroken) {
		t.Errorf("an epoch of the session before: %v", err)
	}
	if _, err := k.Accept(another, 0, caller{nil, 6}); err != nil || k.Number() != 0 {
		t.Errorf("a new session: %v, epoch %d", err, k.Number())
	}
}

func TestFileIsPrivateAndChecked(t *testing.T) {
	k := keeper(t)
	accept(t, k, caller{nil, 1})
	st, err := os.Stat(k.path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	for _, text := range []string{"", "{}", "{", `{"session":"x"}`, `{"session":"` + session + `","next":{"number":1,"key":"AA=="}}`,
		`{"session":"` + session + `","current":{"number":0,"key":"` + strings.Repeat("A", 43) + `="}}`} {
		if err := os.WriteFile(k.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(k.path); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"session":"` + session + `","current":{"number":1,"key":"` + strings.Repeat("A", 43) + `="}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := new(Keeper)
		if k.parse(b) == nil && !protocol.ValidSession(k.session) {
			t.Fatal("a session that is none")
		}
	})
}
