package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stored is a container in a store as the engine's overlay2 makes it: an image of two
// layers, the engine's own above them.
type stored struct {
	home string
	told Layers
}

func newStored(t *testing.T, root, container string, layers ...string) stored {
	t.Helper()
	s := stored{home: filepath.Join(t.TempDir(), root, "overlay2")}
	own := filepath.Join(s.home, container)
	var links []string
	err := errors.Join(os.MkdirAll(filepath.Join(own, "diff"), 0o755), os.Mkdir(filepath.Join(own, "work"), 0o700), os.Mkdir(filepath.Join(s.home, "l"), 0o700))
	for n, name := range layers {
		link := "l/" + strings.Repeat(string(rune('A'+n)), 24) + "27"
		links = append(links, link)
		dir := filepath.Join(s.home, name, "diff")
		err = errors.Join(err, os.MkdirAll(dir, 0o755), os.Symlink("../"+name+"/diff", filepath.Join(s.home, link)))
		s.told.Lower = append(s.told.Lower, dir)
	}
	s.told.Upper = filepath.Join(own, "diff")
	if err = errors.Join(err, os.WriteFile(filepath.Join(own, "lower"), []byte(strings.Join(links, ":")), 0o644)); err != nil {
		t.Fatal(err)
	}
	return s
}

var hexName = strings.Repeat("0f", 32)

// What engines make is no change: with user namespaces the root has another name, the
// layers of BuildKit have short ones, and while a container runs its root is mounted.
func TestStoreAsEnginesMakeIt(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for name, s := range map[string]stored{
		"plain":           newStored(t, "docker", hexName, hexName+"-init", b, a),
		"user namespaces": newStored(t, "docker/200000.200000", hexName, hexName+"-init", b, a),
		"built":           newStored(t, "docker", hexName, hexName+"-init", "x3k2j4h5g6f7d8s9a0q1w2e3r"),
	} {
		if err := overlay2(s.told); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Mkdir(filepath.Join(filepath.Dir(s.told.Upper), "merged"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := overlay2(s.told); err != nil {
			t.Errorf("%s, running: %v", name, err)
		}
	}
}

// TestAttack_LayerMountedFromElsewhere: by its letters each path is the one that the engine
// names, and the kernel would mount another, or nothing at all.
func TestAttack_LayerMountedFromElsewhere(t *testing.T) {
	again := func(link, to string) error { return errors.Join(os.Remove(link), os.Symlink(to, link)) }
	const first = "l/AAAAAAAAAAAAAAAAAAAAAAAA27"
	for name, change := range map[string]func(s *stored, own, outside string) error{
		"a link through a link": func(s *stored, _, outside string) error {
			// l/../e/.. is the store by its letters, and the outside for the kernel.
			return errors.Join(os.MkdirAll(filepath.Join(outside, "x"), 0o755), os.Symlink(filepath.Join(outside, "x"), filepath.Join(s.home, "e")),
				again(filepath.Join(s.home, first), "../e/../"+filepath.Base(filepath.Dir(s.told.Lower[0]))+"/diff"))
		},
		"another directory of links": func(s *stored, own, outside string) error {
			to, err := os.Readlink(filepath.Join(s.home, first))
			b, rerr := os.ReadFile(filepath.Join(own, "lower"))
			return errors.Join(err, rerr, os.MkdirAll(filepath.Join(outside, "m"), 0o755), os.Symlink(to, filepath.Join(outside, "m", first[2:])),
				os.Symlink(filepath.Join(outside, "m"), filepath.Join(s.home, "m")),
				os.WriteFile(filepath.Join(own, "lower"), []byte(strings.Replace(string(b), first, "m"+first[1:], 1)), 0o644))
		},
		"links that lie elsewhere": func(s *stored, _, outside string) error {
			l := filepath.Join(s.home, "l")
			return errors.Join(os.Rename(l, filepath.Join(outside, "l")), os.Symlink(filepath.Join(outside, "l"), l))
		},
		"a layer that lies elsewhere": func(s *stored, _, outside string) error {
			dir := filepath.Dir(s.told.Lower[0])
			return errors.Join(os.Rename(dir, filepath.Join(outside, "layer")), os.Symlink(filepath.Join(outside, "layer"), dir))
		},
		"files of a layer that lie elsewhere": func(s *stored, _, outside string) error {
			return errors.Join(os.Rename(s.told.Lower[0], filepath.Join(outside, "diff")), os.Symlink(filepath.Join(outside, "diff"), s.told.Lower[0]))
		},
		"what is written lies elsewhere": func(s *stored, _, outside string) error {
			return again(s.told.Upper, outside)
		},
		"the work lies elsewhere": func(_ *stored, own, outside string) error { return again(filepath.Join(own, "work"), outside) },
		"mounted already":         func(_ *stored, own, outside string) error { return os.Symlink(outside, filepath.Join(own, "merged")) },
		"a link that leads to another layer": func(s *stored, _, _ string) error {
			return again(filepath.Join(s.home, first), "../"+filepath.Base(filepath.Dir(s.told.Lower[1]))+"/diff")
		},
		"a link from the root": func(s *stored, _, _ string) error { return again(filepath.Join(s.home, first), s.told.Lower[0]) },
		"a link that is a directory": func(s *stored, _, _ string) error {
			return errors.Join(os.Remove(filepath.Join(s.home, first)), os.Mkdir(filepath.Join(s.home, first), 0o755))
		},
		"a layer more": func(_ *stored, own, _ string) error {
			f, err := os.OpenFile(filepath.Join(own, "lower"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString(":" + first)
			return errors.Join(err, f.Close())
		},
		"no end of layers": func(_ *stored, own, _ string) error { return os.Truncate(filepath.Join(own, "lower"), 1<<30) },
		"a pipe instead of layers": func(_ *stored, own, _ string) error {
			return errors.Join(os.Remove(filepath.Join(own, "lower")), unix.Mkfifo(filepath.Join(own, "lower"), 0o644))
		},
		"no layers": func(_ *stored, own, _ string) error { return os.Remove(filepath.Join(own, "lower")) },
		"a container of another name": func(s *stored, own, _ string) error {
			s.told.Upper = filepath.Join(filepath.Dir(own), "evil", "diff")
			return os.Rename(own, filepath.Join(filepath.Dir(own), "evil"))
		},
	} {
		s := newStored(t, "docker", hexName, hexName+"-init", strings.Repeat("b", 64))
		if err := change(&s, filepath.Dir(s.told.Upper), t.TempDir()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := overlay2(s.told); !errors.Is(err, ErrStore) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What overlay2 says of an image: the highest layer, then those below it with the highest first.
func TestLayersOfAnImage(t *testing.T) {
	for name, c := range map[string]struct {
		data map[string]string
		want []string
	}{
		"three layers":  {map[string]string{"UpperDir": "/d/c/diff", "LowerDir": "/d/b/diff:/d/a/diff"}, []string{"/d/a/diff", "/d/b/diff", "/d/c/diff"}},
		"one layer":     {map[string]string{"UpperDir": "/d/a/diff"}, []string{"/d/a/diff"}},
		"another store": {nil, nil},
	} {
		if got := imageDirs(c.data); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
