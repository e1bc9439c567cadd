package guard

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/lab/dockerd"
	"portcullis/verifier/image"
	"portcullis/verifier/verity"
)

// TestAttack_LayerChangedWhileItRuns: somebody who can write to the engine's store
// changes a layer under a running container. It is ended, and that stands in the log.
func TestAttack_LayerChangedWhileItRuns(t *testing.T) {
	r := newRig(t)
	cases := map[string]func(dir string) error{
		"byte of a program": func(dir string) error {
			// Size and times stay.
			name := filepath.Join(dir, "probe")
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				return err
			}
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{0xcc}, st.Size-1)
			return errors.Join(err, f.Close(), unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{st.Atim, st.Mtim}, 0))
		},
		"file more":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "ld.so.preload"), nil, 0o644) },
		"capability": func(dir string) error { return setCapability(filepath.Join(dir, "probe")) },
		"list":       func(dir string) error { return unix.Lsetxattr(filepath.Join(dir, "probe"), "user.x", []byte("y"), 0) },
		"redirect":   func(dir string) error { return unix.Lsetxattr(dir, "trusted.overlay.redirect", []byte("/"), 0) },
		"hidden":     func(dir string) error { return unix.Lsetxattr(dir, opaqueAttr, []byte("y"), 0) },
	}
	ids := map[string]string{}
	for name, change := range cases {
		// No layer is shared with an image of another test.
		i, err := dockerd.Make("test/sampled:1", append(bytes.Clone(r.probe), name...), name)
		if err != nil {
			t.Fatal(err)
		}
		r.approvals.approve(t, i, "task", plain)
		out, err := r.docker(t, bytes.NewReader(i.Tar), "load")
		loaded, ok := strings.CutPrefix(strings.TrimSpace(out), "Loaded image: ")
		if err != nil || !ok {
			t.Fatal(err, out)
		}
		if out, err = r.docker(t, nil, "run", "-d", loaded, "wait"); err != nil {
			t.Fatal(err, out)
		}
		id := strings.TrimSpace(out)
		dirs, err := r.opt.Engine.Layers(t.Context(), id)
		if err == nil {
			err = change(dirs.Lower[len(dirs.Lower)-1])
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ids[name] = id
	}
	for name, id := range ids {
		took := waitFor(t, "the end of "+id, time.Minute, func() bool {
			_, err := r.opt.Engine.Resolve(t.Context(), id)
			return err != nil
		})
		t.Logf("%s: ended after %s more", name, took)
	}
	for _, id := range ids {
		if !strings.Contains(r.log.String(), `"event":"container.ended"`) || !r.approvals.ended(id, ReasonImageStore) {
			t.Errorf("%s is not in the log", id)
		}
	}
}

// setCapability gives a program CAP_SYS_ADMIN (struct vfs_cap_data of version 2).
func setCapability(path string) error {
	return unix.Lsetxattr(path, "security.capability", []byte{1, 0, 0, 2, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
}

// ended tells whether the end of a container stands in the log with a reason.
func (a *approvals) ended(id, reason string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.no {
		if r.Action == ActionRun && r.Reason == reason && strings.Contains(r.Detail, id) {
			return true
		}
	}
	return false
}

// sumOf is what a list has of a file with such bytes.
func sumOf(b []byte) verity.Sum {
	var d verity.Digest
	d.Write(b)
	return d.Sum()
}

// unpackedTree is a directory of n files with its list in a state.
func unpackedTree(t *testing.T, n int) (*Guard, *place) {
	t.Helper()
	s, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var files []image.File
	for i := range n {
		f := image.File{Path: fmt.Sprintf("d%02d/f%04d", i%10, i), Kind: image.KindFile, Mode: 0o644, UID: os.Getuid(), GID: os.Getgid(), Size: 1}
		if i%10 == 3 {
			f = image.File{Path: f.Path, Kind: image.KindLink, Mode: 0o777, UID: os.Getuid(), GID: os.Getgid(), Link: "elsewhere"}
			err = errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, f.Path)), 0o755), os.Symlink(f.Link, filepath.Join(dir, f.Path)))
		} else {
			f.Sum = sumOf([]byte("x"))
			err = errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, f.Path)), 0o755), os.WriteFile(filepath.Join(dir, f.Path), []byte("x"), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	tree, err := s.keepList(digestOf([]byte(t.Name())), files)
	if err != nil {
		t.Fatal(err)
	}
	return &Guard{state: s, opt: Options{Verity: verity.Kernel{}}}, &place{dir: dir, tree: tree}
}

// Every name comes up in a sample sooner or later, and a sample has its bound.
func TestSampleFindsEveryFile(t *testing.T) {
	g, p := unpackedTree(t, 2000)
	for range 20 {
		left := int64(sampleBytes)
		if err := g.samplePlace(t.Context(), p, &left); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.dir, "d07/f0007"), []byte("y"), 0o644); err != nil {
		t.Fatal(err)
	}
	rounds := 0
	for left := int64(sampleBytes); g.samplePlace(t.Context(), p, &left) == nil; left = sampleBytes {
		// 1744 of 2000 miss it each time: 10^-12 after 200 rounds.
		if rounds++; rounds > 200 {
			t.Fatal("never found")
		}
	}
	t.Logf("found in round %d", rounds+1)
	files, implied, names, err := g.state.draw(p.tree, sampleFiles)
	if err != nil || len(files) != sampleFiles || len(implied) != 11 || names != 2000+10+1 {
		t.Errorf("%d drawn of %d: %v", len(files), names, err)
	}
}

// Nothing is hashed that is beyond the budget, and the names are compared all the same.
func TestSampleWithinItsBudget(t *testing.T) {
	g, p := unpackedTree(t, 50)
	if err := os.WriteFile(filepath.Join(p.dir, "d07/f0007"), []byte("y"), 0o644); err != nil {
		t.Fatal(err)
	}
	left := int64(0)
	if err := g.samplePlace(t.Context(), p, &left); err != nil {
		t.Errorf("hashed: %v", err)
	}
	if err := os.Remove(filepath.Join(p.dir, "d03/f0003")); err != nil {
		t.Fatal(err)
	}
	if err := g.samplePlace(t.Context(), p, &left); err == nil {
		t.Error("a name that is gone was not missed")
	}
}

// A list that was changed is no list.
func TestSampleOfAChangedList(t *testing.T) {
	g, p := unpackedTree(t, 20)
	file := g.state.treePath(p.tree)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"another": strings.Replace(string(b), "f0001", "f0101", 1), "longer": string(b) + " ", "none": "", "cut": string(b[:len(b)/2])} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := g.state.draw(p.tree, sampleFiles); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
