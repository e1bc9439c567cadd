package protocol

import "testing"

// Every input decides the next epoch, and an epoch decides the proof and the
// bound binding.
func TestEveryBitDecidesTheEpoch(t *testing.T) {
	next := func(before *Epoch, session string, secret [32]byte, binding Binding) *Epoch {
		t.Helper()
		e, err := NextEpoch(before, session, secret, binding)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	first := next(nil, "s", [32]byte{1}, Binding{2})
	second := next(first, "s", [32]byte{3}, Binding{4})
	if first.Number != 1 || second.Number != 2 || first.Same(second) {
		t.Fatalf("%d then %d", first.Number, second.Number)
	}
	if !next(first, "s", [32]byte{3}, Binding{4}).Same(second) {
		t.Error("the two ends differ")
	}
	differs := func(what string, o *Epoch) {
		t.Helper()
		if o.key == second.key || o.Proof(nil) == second.Proof(nil) || o.Bind(Binding{}) == second.Bind(Binding{}) {
			t.Errorf("%s is not in it", what)
		}
	}
	for i := range 256 {
		flip := func(b [32]byte) [32]byte { b[i/8] ^= 1 << (i % 8); return b }
		differs("the secret", next(first, "s", flip([32]byte{3}), Binding{4}))
		differs("the epoch before", next(OldEpoch(1, flip(first.key)), "s", [32]byte{3}, Binding{4}))
		b := Binding{4}
		b[i/4] ^= 1 << (i % 8)
		differs("the binding", next(first, "s", [32]byte{3}, b))
	}
	differs("the session", next(first, "t", [32]byte{3}, Binding{4}))
	differs("that there was one before", OldEpoch(2, next(nil, "s", [32]byte{3}, Binding{4}).key))
	differs("the number", next(OldEpoch(7, first.key), "s", [32]byte{3}, Binding{4}))
	if second.Proof([]byte("a")) == second.Proof([]byte("b")) || second.Bind(Binding{1}) == second.Bind(Binding{2}) {
		t.Error("the claim or the binding is not in it")
	}
	kept := OldEpoch(second.Number, second.Key())
	if !kept.Same(second) {
		t.Error("an epoch does not survive being kept")
	}
	second.Wipe()
	if kept.Same(second) || second.key != [32]byte{} {
		t.Error("not wiped")
	}
}
