package textpatch

import "testing"

func TestBranch(t *testing.T) {
	for code, want := range map[string]struct {
		to uint64
		n  int
	}{
		"\xe8\x10\x00\x00\x00":             {0x1015, 5},
		"\xe9\xfb\xff\xff\xff\xcc":         {0x1000, 5},
		"\x2e\xe8\x10\x00\x00\x00":         {0x1016, 6},
		"\x0f\x84\x10\x00\x00\x00":         {0x1016, 6},
		"\x2e\x0f\x8f\x10\x00\x00\x00\x90": {0x1017, 7},
		"\xeb\xfe":                         {0x1000, 2},
		"\x2e\xeb\x01":                     {0x1004, 3},
		"\xe8\x10\x00\x00":                 {}, "\x2e": {}, "\x2e\xe8\x10\x00\x00": {}, "\x0f\x84\x10\x00\x00": {}, "\xeb": {}, "": {},
		"\x0f\x74\x10\x00\x00\x00": {}, "\x90\x90\x90\x90\x90": {},
	} {
		to, n, ok := Branch(0x1000, []byte(code))
		if to != want.to || n != want.n || ok != (want.n > 0) {
			t.Errorf("%x: %#x %d %t", code, to, n, ok)
		}
	}
}

func TestJumpLabel(t *testing.T) {
	for code, want := range map[string]bool{
		string(Nop2): true, string(Nop5): true, "\xeb\x0e": true, "\xe9\x0b\x00\x00\x00": true,
		"\xeb\x0f": false, "\xe9\x0c\x00\x00\x00": false, "\xe8\x0b\x00\x00\x00": false, "\x2e\xe9\x0a\x00\x00\x00": false, "\x0f\x84\x0a\x00\x00\x00": false,
		"\xe9\x0b\x00\x00\x00\x90": false, "\x66": false, "": false, string(Zero5): false,
	} {
		if got := JumpLabel(0x1000, []byte(code), 0x1010); got != want {
			t.Errorf("%x: %t", code, got)
		}
	}
}

func TestStaticCall(t *testing.T) {
	type answer struct {
		to          uint64
		nothing, ok bool
	}
	for code, want := range map[string]answer{
		string(Nop5): {0, true, true}, string(Zero5): {0, true, true}, string(Return5): {0, true, true},
		"\xe8\x0b\x00\x00\x00": {0x1010, false, true}, "\x2e\xe9\x0a\x00\x00\x00": {0x1010, false, true}, "\x0f\x84\x0a\x00\x00\x00": {0x1010, false, true},
	} {
		to, nothing, ok := StaticCall(0x1000, []byte(code))
		if got := (answer{to, nothing, ok}); got != want {
			t.Errorf("%x: %+v", code, got)
		}
	}
	for _, code := range []string{"", string(Nop2), "\xeb\x0e", "\xe8\x0b\x00\x00\x00\x90", "\x90\x90\x90\x90\x90", "\x2e\xeb\x01"} {
		if _, _, ok := StaticCall(0x1000, []byte(code)); ok {
			t.Errorf("%x is a static call", code)
		}
	}
}
