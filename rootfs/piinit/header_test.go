package piinit

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/luks2"
)

// rewrite changes the metadata in every copy of a header and makes the checksums right,
// as who has the card in a reader can.
func rewrite(t *testing.T, header []byte, old, new string) {
	t.Helper()
	for at := 0; at < len(header); at += luks2.HeaderSize {
		c := header[at : at+luks2.HeaderSize]
		text, _, _ := bytes.Cut(c[4096:], []byte{0})
		if !bytes.Contains(text, []byte(old)) {
			t.Fatalf("no %s in %s", old, text)
		}
		text = bytes.ReplaceAll(text, []byte(old), []byte(new))
		clear(c[4096:])
		copy(c[4096:], text)
		clear(c[448:512])
		sum := sha256.Sum256(c)
		copy(c[448:], sum[:])
	}
}

// forge rewrites the header on the card.
func forge(t *testing.T, p *pi, old, new string) {
	t.Helper()
	d := p.part(card.PartCrypt)
	b := make([]byte, 2*luks2.HeaderSize)
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	rewrite(t, b, old, new)
	if _, err := d.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// TestAttackHeaderThatChangesBetweenReadings: a card that shows a good header once and
// then one whose digest fits every key and whose payload lies elsewhere is not
// believed a second time.
func TestAttackHeaderThatChangesBetweenReadings(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	d := p.part(card.PartCrypt)
	evil := make([]byte, 2*luks2.HeaderSize)
	d.ReadAt(evil, 0)
	rewrite(t, evil, `"iv_tweak":"0"`, `"iv_tweak":"8"`)
	reads, shown := 0, false
	p.reread = func(p []byte, off int64) {
		if off != d.off || len(p) < luks2.HeaderSize {
			return
		}
		if reads++; reads > 1 {
			shown = true
			copy(p, evil)
		}
	}
	r := p.must()
	if r.Handover.UnlockedBy != card.UnlockedByChip {
		t.Errorf("%+v", r.Handover)
	}
	if shown {
		t.Error("the header was read again after it was checked")
	}
	p.reread = nil
	p.part(card.PartCrypt).WriteAt(evil, 0)
	p.refused(string(luks2.ReasonUnsupported))
}

// TestAttackForeignLayouts: only the layout that first boot makes is mapped.
func TestAttackForeignLayouts(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	for name, c := range map[string]struct{ old, new, reason string }{
		"cipher":        {`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"aes-ecb","sector_size"`, string(luks2.ReasonUnsupported)},
		"no cipher":     {`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"cipher_null-ecb","sector_size"`, string(luks2.ReasonUnsupported)},
		"sectors":       {`"sector_size":4096`, `"sector_size":512`, string(luks2.ReasonUnsupported)},
		"offset":        {`"offset":"16777216","size":"dynamic"`, `"offset":"16785408","size":"dynamic"`, string(luks2.ReasonUnsupported)},
		"size":          {`"size":"dynamic"`, `"size":"1073741824"`, string(luks2.ReasonUnsupported)},
		"first sector":  {`"iv_tweak":"0"`, `"iv_tweak":"1"`, string(luks2.ReasonUnsupported)},
		"empty digest":  {`"hash":"sha256","iterations":1000,"salt":"`, `"hash":"sha256","iterations":1000,"digest":"","salt":"`, string(luks2.ReasonMetadata)},
		"digest for no": {`"segments":["0"]`, `"segments":[]`, string(luks2.ReasonMetadata)},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPi(t, b, seed)
			p.must()
			forge(t, p, c.old, c.new)
			p.refused(c.reason)
			nothingWritten(t, p)
		})
	}
	// An empty digest, in the place of the one that is there.
	p := newPi(t, b, seed)
	p.must()
	text := string(p.header().JSON())
	_, digest, ok := strings.Cut(text, `"digest":"`)
	if !ok {
		t.Fatal(text)
	}
	digest, _, _ = strings.Cut(digest, `"`)
	forge(t, p, `"digest":"`+digest+`"`, `"digest":""`)
	p.refused(string(luks2.ReasonMetadata))
}

// TestAttackForgedKeyslotCosts: a keyslot that would keep the Pi at work for hours, or
// take all its memory, is refused before anything is computed.
func TestAttackForgedKeyslotCosts(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, seed := operator(t)
	const iterations = `"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,`
	for name, kdf := range map[string]string{
		"iterations":        `"kdf":{"type":"pbkdf2","hash":"sha256","iterations":2147483647,`,
		"memory":            `"kdf":{"type":"argon2id","time":1,"memory":2147483647,"cpus":1,`,
		"passes":            `"kdf":{"type":"argon2id","time":2147483647,"memory":64,"cpus":1,`,
		"passes and memory": `"kdf":{"type":"argon2id","time":64,"memory":262144,"cpus":1,`,
	} {
		p := newPi(t, b, seed)
		p.must()
		recovery := p.people.recoveryKey(t)
		forge(t, p, iterations, kdf)
		p.answers = []string{recovery}
		if err := p.refused(string(ReasonUnlock)); !strings.Contains(err.Error(), string(luks2.ReasonCost)) {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(p.people.text(), "note=recovery ") || !strings.Contains(p.people.text(), string(luks2.ReasonCost)) {
			t.Errorf("%s: the console does not say why:\n%s", name, p.people.text())
		}
	}
	// So is a digest that would.
	p := newPi(t, b, seed)
	p.must()
	forge(t, p, `"hash":"sha256","iterations":1000,"salt"`, `"hash":"sha256","iterations":2147483647,"salt"`)
	if err := p.refused(string(ReasonUnlock)); !strings.Contains(err.Error(), string(luks2.ReasonCost)) {
		t.Errorf("digest: %v", err)
	}
}
