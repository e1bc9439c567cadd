package card

import "testing"

func FuzzZymbitState(f *testing.F) {
	b, err := encodeZymbit(3, &ZymbitState{Files: []ZymbitFileEntry{{Name: "a/b", Mode: 0o600, Data: []byte("x")}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:100])
	f.Add([]byte(zymbitMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		copied := make([]byte, ZymbitCopy)
		copy(copied, b)
		g, s, err := decodeZymbit(copied)
		if err != nil || s == nil {
			return
		}
		again, err := encodeZymbit(g, s)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if g2, s2, err := decodeZymbit(again); err != nil || g2 != g || !s2.Equal(s) {
			t.Errorf("%d %+v %v", g2, s2, err)
		}
	})
}
