package card_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"portcullis/images/card"
	"portcullis/images/card/cardtest"
	"portcullis/images/fat"
)

func vendorState(n byte) *card.ZymbitState {
	return &card.ZymbitState{Files: []card.ZymbitFileEntry{
		{Name: "standalone/id", Mode: 0o600, Data: bytes.Repeat([]byte{n}, 900)},
		{Name: "zkenv.conf", Mode: 0o644, Data: []byte("ZK_GPIO_WAKE_PIN=516\n")},
	}}
}

func TestZymbitStateIsKept(t *testing.T) {
	d := confDisk(t)
	c := cardtest.OpenConf(t, d)
	if s, err := c.ZymbitState(); s != nil || err != nil {
		t.Fatalf("%+v %v", s, err)
	}
	for n := range byte(5) {
		if err := c.SetZymbitState(vendorState(n)); err != nil {
			t.Fatal(err)
		}
		if s, err := cardtest.OpenConf(t, d).ZymbitState(); err != nil || !s.Equal(vendorState(n)) {
			t.Fatalf("%d: %+v %v", n, s, err)
		}
	}
	// Through a directory, which holds nothing else afterwards.
	dir := filepath.Join(t.TempDir(), "zymbit")
	if err := os.MkdirAll(filepath.Join(dir, "stale"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "stale", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := vendorState(7).Write(dir); err != nil {
		t.Fatal(err)
	}
	if s, err := card.ReadZymbitState(dir); err != nil || !s.Equal(vendorState(7)) {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := card.ReadZymbitState(filepath.Join(dir, "none")); s != nil || err != nil {
		t.Errorf("%+v %v", s, err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := card.ReadZymbitState(dir); reasonOf(err) != card.ReasonZymbitState {
		t.Errorf("a link: %v", err)
	}
	// As flashed.
	b, err := card.ZymbitImage(vendorState(9))
	if err != nil || len(b) != card.ZymbitSize {
		t.Fatal(len(b), err)
	}
}

func reasonOf(err error) string {
	var e *card.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// TestPowerCutKeepsAZymbitState: a module that is locked to a state which is lost can
// never be used again, so at every cut the old one or the new one is there.
func TestPowerCutKeepsAZymbitState(t *testing.T) {
	whole := confDisk(t)
	for _, n := range []byte{1, 2} {
		if err := cardtest.OpenConf(t, whole).SetZymbitState(vendorState(n)); err != nil {
			t.Fatal(err)
		}
	}
	olds, news := 0, 0
	for round := range uint64(60) {
		for cut := range 3 { // in the write, in the sync, behind it
			p := &cardtest.Power{CutAt: cut}
			d := whole.Clone(p)
			err := cardtest.OpenConf(t, d).SetZymbitState(vendorState(3))
			d.Restart(&cardtest.Power{CutAt: -1}, rand.New(rand.NewPCG(round, uint64(cut))))
			s, rerr := cardtest.OpenConf(t, d).ZymbitState()
			switch {
			case rerr == nil && s.Equal(vendorState(3)):
				news++
			case rerr == nil && err != nil && s.Equal(vendorState(2)):
				olds++
			default:
				t.Fatalf("cut %d: %+v %v (%v)", cut, s, rerr, err)
			}
			// The next boot can still write.
			if err := cardtest.OpenConf(t, d).SetZymbitState(vendorState(4)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if olds == 0 || news == 0 {
		t.Errorf("%d old and %d new states", olds, news)
	}
}

func TestZymbitStateRefusals(t *testing.T) {
	file := func(name string) *card.ZymbitState {
		return &card.ZymbitState{Files: []card.ZymbitFileEntry{{Name: name, Mode: 0o600}}}
	}
	twice := file("a")
	twice.Files = append(twice.Files, twice.Files[0])
	large := file("a")
	large.Files[0].Data = make([]byte, card.ZymbitCopy)
	device := file("a")
	device.Files[0].Mode = fs.ModeSetuid | 0o755
	for name, s := range map[string]*card.ZymbitState{
		"out": file("../a"), "absolute": file("/a"), "empty": file(""), "dot": file("."), "blank": file("a b"), "twice": twice, "none": {}, "large": large, "set-uid": device,
	} {
		if _, err := card.ZymbitImage(s); reasonOf(err) != card.ReasonZymbitState {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A card of an older image has no place for it.
	files, err := card.ConfFiles(release(1))
	if err != nil {
		t.Fatal(err)
	}
	delete(files, card.ZymbitFile)
	d := cardtest.New(&cardtest.Power{CutAt: -1}, card.ConfSize)
	if err := fat.Build(d, fat.Options{Size: card.ConfSize}, files); err != nil {
		t.Fatal(err)
	}
	c := cardtest.OpenConf(t, d)
	if s, err := c.ZymbitState(); s != nil || err != nil {
		t.Errorf("%+v %v", s, err)
	}
	if err := c.SetZymbitState(vendorState(1)); reasonOf(err) != card.ReasonZymbitState {
		t.Error(err)
	}
}
