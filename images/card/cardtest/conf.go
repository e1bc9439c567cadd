package cardtest

import (
	"testing"

	"portcullis/images/card"
	"portcullis/images/fat"
)

// Conf is the configuration partition of a card that was flashed with a release.
func Conf(t testing.TB, p *Power, r card.Release) *Disk {
	t.Helper()
	files, err := card.ConfFiles(r)
	if err != nil {
		t.Fatal(err)
	}
	d := New(p, card.ConfSize)
	if err := fat.Build(d, fat.Options{Size: card.ConfSize, Label: card.LabelConf, ID: 1}, files); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	return d
}

// OpenConf opens it.
func OpenConf(t testing.TB, d *Disk) *card.Conf {
	t.Helper()
	c, err := card.OpenConf(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return c
}
