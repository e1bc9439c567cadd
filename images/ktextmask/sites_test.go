package ktextmask

import (
	"bytes"
	"testing"

	"portcullis/images/textpatch"
)

// Only what the kernel itself can have written may pass unseen.
func TestSites_OnlyLegalFormsAreLeftOut(t *testing.T) {
	m := &Mask{TextSize: 0x1000, Classes: []Class{
		{Name: JumpLabel, Ranges: []Range{{0x10, 2}, {0x20, 5}}, Targets: []uint32{0x30, 0x500}},
		{Name: StaticCall, Ranges: []Range{{0x40, 5}, {0x50, 6}}},
		{Name: Trampoline, Ranges: []Range{{0x40, 5}, {0x60, 5}}},
		{Name: RuntimeConst, Ranges: []Range{{0x70, 8}}},
	}, Boot: []Range{{0x80, 4}}}
	for _, c := range []struct {
		name  string
		at    int
		code  []byte
		legal bool
	}{
		{"short NOP", 0x10, []byte{0x66, 0x90}, true},
		{"short jump to its target", 0x10, []byte{0xeb, 0x1e}, true},
		{"short jump elsewhere", 0x10, []byte{0xeb, 0x1f}, false},
		{"INT3 of a debugger", 0x10, []byte{0xcc, 0x90}, false},
		{"long NOP", 0x20, []byte{0x0f, 0x1f, 0x44, 0, 0}, true},
		{"long jump to its target", 0x20, []byte{0xe9, 0xdb, 0x04, 0, 0}, true},
		{"hook in a jump label", 0x20, []byte{0xe9, 0xdb, 0x14, 0, 0}, false},
		{"call in a jump label", 0x20, []byte{0xe8, 0xdb, 0x04, 0, 0}, false},
		{"call into text", 0x40, []byte{0xe8, 0x00, 0x01, 0, 0}, true},
		{"tail call into text", 0x40, []byte{0xe9, 0x00, 0x01, 0, 0}, true},
		{"static call switched off", 0x40, []byte{0x0f, 0x1f, 0x44, 0, 0}, true},
		{"static call that returns 0", 0x40, []byte{0x2e, 0x2e, 0x2e, 0x31, 0xc0}, true},
		{"static call that returns", 0x40, []byte{0xc3, 0xcc, 0xcc, 0xcc, 0xcc}, true},
		{"hook in a static call: behind the text", 0x40, []byte{0xe8, 0x00, 0x10, 0, 0}, false},
		{"hook in a static call: before the text", 0x40, []byte{0xe8, 0x00, 0xff, 0xff, 0xff}, false},
		{"other code in a static call", 0x40, []byte{0x90, 0x90, 0x90, 0x90, 0x90}, false},
		{"conditional tail call", 0x50, []byte{0x0f, 0x84, 0, 1, 0, 0}, true},
		{"conditional tail call out of the text", 0x50, []byte{0x0f, 0x84, 0, 0, 1, 0}, false},
		{"call and a byte more", 0x50, []byte{0xe8, 0, 1, 0, 0, 0x90}, false},
		{"trampoline", 0x60, []byte{0xe9, 0, 1, 0, 0}, true},
		{"trampoline to a module", 0x60, []byte{0xe9, 0, 0, 0, 0x3f}, false},
		{"constant", 0x70, []byte{1, 2, 3, 4, 5, 6, 7, 8}, true},
		{"boot-time site", 0x80, []byte{1, 2, 3, 4}, false},
	} {
		buf := make([]byte, 0x90)
		copy(buf[0x10:], textpatch.Nop2)
		for _, at := range []int{0x20, 0x40, 0x60} {
			copy(buf[at:], textpatch.Nop5)
		}
		copy(buf[0x60:], []byte{0xe9, 0, 1, 0, 0})
		copy(buf[0x50:], []byte{0x0f, 0x84, 0, 1, 0, 0})
		copy(buf[c.at:], c.code)
		odd := m.Sites().Clear(buf, 0)
		for _, r := range odd {
			if m.Sites().Legal(r, buf[r.Off:r.Off+r.Len]) {
				t.Errorf("%s: odd and legal at once", c.name)
			}
		}
		cleared := bytes.Equal(buf[c.at:][:len(c.code)], make([]byte, len(c.code)))
		if cleared != c.legal || (len(odd) > 0) == (c.legal || c.at == 0x80) {
			t.Errorf("%s: cleared is %t, %d odd sites", c.name, cleared, len(odd))
		}
	}
}

// A site across the edge of a piece is judged in the piece read with its margin.
func TestSites_Edges(t *testing.T) {
	m := &Mask{TextSize: 0x1000, Classes: []Class{{Name: StaticCall, Ranges: []Range{{0x0e, 5}, {0x20, 5}}}}}
	text := bytes.Repeat([]byte{0x55}, 0x40)
	copy(text[0x0e:], textpatch.Nop5)
	copy(text[0x20:], textpatch.Nop5)
	buf := bytes.Clone(text[0x10:0x20])
	if m.Sites().Clear(buf, 0x10); !bytes.Equal(buf, text[0x10:0x20]) {
		t.Error("half a site was judged")
	}
	buf = bytes.Clone(text[0x08:0x28])
	if odd := m.Sites().Clear(buf, 0x08); len(odd) != 0 || !bytes.Equal(buf[6:11], make([]byte, 5)) || !bytes.Equal(buf[0x18:0x1d], make([]byte, 5)) {
		t.Errorf("%d odd sites, % x", len(odd), buf)
	}
}
