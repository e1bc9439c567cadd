package pi

import (
	"bytes"
	"testing"

	"portcullis/images/debroot"
)

// TestSqueeze: the kernel's two limits on xz, the same bytes twice, and our own reader.
func TestSqueeze(t *testing.T) {
	program := bytes.Repeat([]byte("code of a program\n"), 200000)
	archive, err := debroot.Pack(program, map[string][]byte{"etc/portcullis/modules": []byte("/a.ko\n")}, 1)
	must(t, err)
	small, err := Squeeze(t.Context(), archive)
	must(t, err)
	again, err := Squeeze(t.Context(), archive)
	must(t, err)
	if !bytes.Equal(small, again) {
		t.Error("the same archive gives other bytes")
	}
	// Stream flags, bytes 6 and 7 of the file format: 1 is CRC32.
	if !bytes.Equal(small[:8], []byte("\xFD7zXZ\x00\x00\x01")) {
		t.Errorf("begins with %x", small[:8])
	}
	for name, want := range map[string]string{"init": string(program), "etc/portcullis/modules": "/a.ko\n"} {
		got, err := debroot.ReadInitrd(small, name)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for what, broken := range map[string][]byte{"cut short": small[:len(small)-40], "changed": append(bytes.Clone(small[:200]), append([]byte{small[200] ^ 1}, small[201:]...)...)} {
		if _, err := debroot.ReadInitrd(broken, "init"); err == nil {
			t.Errorf("%s: read", what)
		}
	}
}
