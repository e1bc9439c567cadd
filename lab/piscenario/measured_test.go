package piscenario

import (
	"bytes"
	"io"
	"regexp"
	"testing"

	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/fat"
	imagepi "portcullis/images/pi"
	"portcullis/images/uki"
	"portcullis/lab/pi"
)

// edit changes a section of the UKI on the boot partition in place; what is shorter
// than before is filled up with zeros.
func edit(t *testing.T, c pi.Card, name string, change func(section []byte) []byte) {
	t.Helper()
	part := section(t, c, card.PartBootA)
	v, err := fat.Open(part, part.Size())
	if err != nil {
		t.Fatal(err)
	}
	inside, size, err := v.Extent(card.UKIFile)
	if err != nil {
		t.Fatal(err)
	}
	image := make([]byte, size)
	if _, err := part.ReadAt(image, inside); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	f, err := uki.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	old, ok := f.Section(name)
	if !ok {
		t.Fatalf("no section %s", name)
	}
	at := bytes.Index(image, old)
	changed := change(old)
	if len(changed) > len(old) || bytes.Equal(changed, old) {
		t.Fatalf("section %s: %d bytes in place of %d", name, len(changed), len(old))
	}
	offset, _ := partition(t, c, card.PartBootA)
	write(t, c, append(bytes.Clone(changed), make([]byte, len(old)-len(changed))...), offset+inside+int64(at))
}

// TestAttackEditedBootIsSeenByFirmware: with firmware that measures, one byte more or
// less of the command line or the initramfs is another register, whatever the edited
// software says of itself, and the chip keeps the key.
func TestAttackEditedBootIsSeenByFirmware(t *testing.T) {
	t.Parallel()
	p := provisionedBy(t, pi.AAVMF)
	c := cardOf(t, p.Card)
	m := boot(t, c, withAAVMF)
	expect(t, m, `portcullis: stage=posture [^\n]*posture=firmware-measured platform=efi`)
	expect(t, m, `portcullis: stage=unlock [^\n]*by=tpm2`)
	expect(t, m, `portcullis: stage=switch-root`)
	m.Kill()

	for name, attack := range map[string]func(t *testing.T, c pi.Card){
		"command line": func(t *testing.T, c pi.Card) {
			edit(t, c, uki.Cmdline, func(old []byte) []byte { return bytes.Replace(old, []byte("panic=10"), []byte("panic=11"), 1) })
		},
		"initramfs": func(t *testing.T, c pi.Card) { edit(t, c, uki.Initrd, otherInitramfs(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := cardOf(t, p.Card)
			attack(t, c)
			m := boot(t, c, withAAVMF)
			expect(t, m, `portcullis: stage=measure`)
			expect(t, m, `portcullis: failed stage=unlock [^\n]*reason=root-policy`)
			expect(t, m, recoveryPrompt)
		})
	}
}

// What the Go linker puts into pi-init and nothing there reads: checksums of modules, and
// the names of source files, which only a traceback prints. Zeros in their place leave out
// about 2.7 KB of the compressed archive; the checksums alone leave out nothing for certain,
// since another text elsewhere has xz choose differently by up to 0.7 KB either way.
var unread = map[string]*regexp.Regexp{
	"checksums of modules":  regexp.MustCompile(`h1:[A-Za-z0-9+/]{43}=`),
	"names of source files": regexp.MustCompile(`[A-Za-z0-9_./@!-]{4,}\.go\x00`),
}

// otherInitramfs is an archive with another pi-init in it, which does the same and is
// not longer than the one it replaces.
func otherInitramfs(t *testing.T) func([]byte) []byte {
	return func(old []byte) []byte {
		other, err := debroot.UnpackInitrd(bytes.TrimRight(old, "\x00"))
		if err != nil {
			t.Fatal(err)
		}
		for what, pattern := range unread {
			n := 0
			other = pattern.ReplaceAllFunc(other, func(found []byte) []byte { n++; return make([]byte, len(found)) })
			if n < 5 {
				t.Fatalf("%d %s in the initramfs", n, what)
			}
		}
		small, err := imagepi.Squeeze(t.Context(), other)
		if err != nil {
			t.Fatal(err)
		}
		return small
	}
}
