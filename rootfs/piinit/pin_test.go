package piinit

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/rootfs/boot"
)

// rewriteSeed is somebody who has the card in a reader for a minute.
func rewriteSeed(t *testing.T, p *pi, text string) {
	t.Helper()
	image, err := card.SeedImage("seed", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	at, _, err := openFAT(t, p.part(card.PartConf)).Extent(card.SeedFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.part(card.PartConf).WriteAt(image, at); err != nil {
		t.Fatal(err)
	}
}

// TestAttackChangedSettings: the seed says whose images the PC gets. Who rewrites it
// on an enrolled card changes nothing, and the console says that it was changed.
func TestAttackChangedSettings(t *testing.T) {
	b := newSigner(t).build(t, 3)
	_, mine := operator(t)
	_, theirs := operator(t)
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, dataDir), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newPi(t, b, mine)
	inForce := func(want string) {
		t.Helper()
		r := p.must()
		s, err := settingsInForce(t.Context(), root, r, p.b.Log)
		if err != nil || s == nil || !strings.Contains(want, s.OperatorKey) {
			t.Errorf("%+v, %v", s, err)
		}
	}
	inForce(mine)
	recovery := p.people.recoveryKey(t)

	rewriteSeed(t, p, theirs)
	for _, answers := range [][]string{nil, {"ENROL"}, {"yes"}, {strings.Repeat("cbdefghi-", 8)[:71]}} {
		p.answers = answers
		inForce(mine)
		if len(p.people.asked) != 1 || !strings.Contains(p.people.text(), "settings-changed") {
			t.Errorf("%v: asked %q\n%s", answers, p.people.asked, p.people.text())
		}
	}
	// Wiped or broken settings take nothing away either.
	rewriteSeedRaw(t, p, []byte("schema: nothing\n"))
	p.answers = nil
	inForce(mine)
	if len(p.people.asked) != 0 {
		t.Errorf("asked %q", p.people.asked)
	}
	// The owner.
	rewriteSeed(t, p, theirs)
	p.answers = []string{recovery}
	inForce(theirs)
	p.answers = nil
	inForce(theirs)
	if len(p.people.asked) != 0 || strings.Contains(p.people.text(), recovery) {
		t.Errorf("asked %q again", p.people.asked)
	}
}

func rewriteSeedRaw(t *testing.T, p *pi, text []byte) {
	t.Helper()
	at, n, err := openFAT(t, p.part(card.PartConf)).Extent(card.SeedFile)
	if err != nil {
		t.Fatal(err)
	}
	padded := append(text, []byte(strings.Repeat("\n", int(n)-len(text)))...)
	if _, err := p.part(card.PartConf).WriteAt(padded, at); err != nil {
		t.Fatal(err)
	}
}

// Settings that come after the first boot are taken: before, nothing was in force.
func TestFirstSettingsAreTaken(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, dataDir), 0o755); err != nil {
		t.Fatal(err)
	}
	_, text := operator(t)
	log := boot.NewStageLog(new(strings.Builder), func() time.Duration { return 0 })
	never := func(context.Context) bool { t.Error("asked"); return false }
	if s, err := settingsInForce(t.Context(), root, &Result{Accept: never}, log); s != nil || err != nil {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := os.Stat(filepath.Join(root, dataDir, pinFile)); err == nil {
		t.Error("nothing is kept as if it were settings")
	}
	seed, err := card.ParseSeed("seed", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := settingsInForce(t.Context(), root, &Result{Seed: seed, SeedText: []byte(text), Accept: never}, log)
		if err != nil || s == nil || s.OperatorKey != seed.OperatorKey {
			t.Errorf("%+v, %v", s, err)
		}
	}
	if st, err := os.Stat(filepath.Join(root, dataDir, pinFile)); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

func openFAT(t *testing.T, d *section) *fat.FS {
	t.Helper()
	v, err := fat.Open(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
