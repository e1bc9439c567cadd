package guard

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/lab/dockerd"
	"portcullis/verifier/engine"
)

// TestAttack_StoreMountedFromElsewhere: no file below the directories that the engine names
// is changed, and others would be mounted, by links that the kernel follows at the start. They
// are found before it.
func TestAttack_StoreMountedFromElsewhere(t *testing.T) {
	r := newRig(t)
	type made struct {
		id      string
		dirs    engine.Layers
		outside string // a directory that is no layer
	}
	elsewhere := func(dir, outside string) error {
		return errors.Join(os.CopyFS(outside, os.DirFS(dir)), os.WriteFile(filepath.Join(outside, "evil"), nil, 0o644))
	}
	// A container that runs: its root is mounted.
	running := r.image(t, plain)
	out, err := r.docker(t, nil, "run", "-d", running.Name, "wait")
	if err != nil {
		t.Fatal(err, out)
	}
	runs := strings.TrimSpace(out)
	overlay2 := r.daemon.Kind != dockerd.V29Containerd
	attacks := map[string]func(t *testing.T, m made) error{
		"what is written lies elsewhere": func(t *testing.T, m made) error {
			return errors.Join(elsewhere(m.dirs.Upper, m.outside), os.Remove(m.dirs.Upper), os.Symlink(m.outside, m.dirs.Upper))
		},
		"mounted already": func(t *testing.T, m made) error {
			place, other := filepath.Join(r.daemon.Store, "rootfs", "overlayfs", m.id), filepath.Join(r.daemon.Store, "rootfs", "overlayfs", runs)
			if overlay2 {
				l, err := r.opt.Engine.Layers(t.Context(), runs)
				if err != nil {
					return err
				}
				place, other = filepath.Join(filepath.Dir(m.dirs.Upper), "merged"), filepath.Join(filepath.Dir(l.Upper), "merged")
			}
			return os.Symlink(other, place)
		},
	}
	if overlay2 {
		attacks["a layer's link through a link"] = func(t *testing.T, m made) error {
			home, layer := filepath.Dir(filepath.Dir(m.dirs.Upper)), m.dirs.Lower[len(m.dirs.Lower)-1]
			own := filepath.Base(filepath.Dir(layer))
			b, err := os.ReadFile(filepath.Join(filepath.Dir(layer), "link"))
			link := filepath.Join(home, "l", string(b))
			through := filepath.Join(home, "e")
			t.Cleanup(func() { os.Remove(through) })
			return errors.Join(err, os.Mkdir(filepath.Join(m.outside, "x"), 0o755), elsewhere(layer, filepath.Join(m.outside, own, "diff")),
				os.Symlink(filepath.Join(m.outside, "x"), through), os.Remove(link), os.Symlink("../e/../"+own+"/diff", link))
		}
	}
	for name, change := range attacks {
		t.Run(name, func(t *testing.T) {
			_, _, id, file := r.inStore(t)
			dirs, err := r.opt.Engine.Layers(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			outside, err := os.MkdirTemp(r.daemon.Store, "outside")
			if err != nil {
				t.Fatal(err)
			}
			if err := change(t, made{id, dirs, outside}); err != nil {
				t.Fatal(err)
			}
			if out, err := r.docker(t, nil, "start", id); err == nil || !strings.Contains(out, ReasonImageStore) {
				t.Errorf("started: %v %s", err, out)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("the layer itself was changed: %v", err)
			}
		})
	}
	if out, err := r.docker(t, nil, "run", "--rm", running.Name, "say", "on"); err != nil || out != "on\n" {
		t.Errorf("an image beside them: %v %s", err, out)
	}
}
