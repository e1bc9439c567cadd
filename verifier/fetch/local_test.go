package fetch

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"portcullis/images/fat"
	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
)

// disk is a stick's bytes.
type disk []byte

func (d disk) WriteAt(b []byte, off int64) (int, error) { return copy(d[off:], b), nil }

// write puts files below dir.
func write(t *testing.T, dir string, files imagetest.Files) {
	t.Helper()
	for name, b := range files {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// below moves files into a directory of a stick.
func below(dir string, files imagetest.Files) imagetest.Files {
	out := imagetest.Files{}
	for name, b := range files {
		out[dir+"/"+name] = b
	}
	return out
}

// stickFiles are two images in three forms, and what is none.
func stickFiles(t *testing.T) (files imagetest.Files, layout, saved imagetest.Files) {
	layout = imagetest.OCI(t, imagetest.OneFile(t, "probe", strings.Repeat("x", 70000)), imagetest.OneFile(t, "mark", "layout"))
	saved = imagetest.Saved(t, imagetest.OneFile(t, "probe", "saved"))
	files = below("images/hello", layout)
	files["hello.tar"] = imagetest.Pack(t, layout)
	files["images/old.tar"] = imagetest.Pack(t, saved)
	files["notes.txt"] = []byte("nothing")
	files["broken.tar"] = []byte("this is no archive")
	return files, layout, saved
}

func check(t *testing.T, where string, files imagetest.Files) {
	t.Helper()
	found, done, err := Local(t.Context(), where, "")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	seen := map[string]bool{}
	for _, f := range found {
		path := strings.ToLower(f.Path)
		seen[path] = true
		if path == "broken.tar" {
			if image.Reason(f.Err) != image.ReasonTar {
				t.Errorf("%s: %v", f.Path, f.Err)
			}
			continue
		}
		if f.Err != nil {
			t.Errorf("%s: %v", f.Path, f.Err)
			continue
		}
		a, err := image.Read(t.Context(), bytes.NewReader(content(t, f.Image)), t.TempDir(), image.Options{})
		if err != nil {
			t.Errorf("%s: %v", f.Path, err)
			continue
		}
		if !f.Is(a.Image()) || f.Size == 0 {
			t.Errorf("%s: %+v", f.Path, f.Outline)
		}
		a.Close()
	}
	if len(found) != 4 || !seen["images/hello"] || !seen["hello.tar"] || !seen["images/old.tar"] || !seen["broken.tar"] {
		t.Errorf("%s: %v", where, seen)
	}
}

func TestStickIsSearched(t *testing.T) {
	files, _, _ := stickFiles(t)
	dir := t.TempDir()
	write(t, dir, files)
	check(t, dir, files)

	d := make(disk, 16<<20)
	if err := fat.Build(d, fat.Options{Size: int64(len(d)), Label: "IMAGES"}, files); err != nil {
		t.Fatal(err)
	}
	device := filepath.Join(t.TempDir(), "stick.img")
	if err := os.WriteFile(device, d, 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, device, files)
}

func TestLocalArchiveAndLayout(t *testing.T) {
	layout := imagetest.OCI(t, imagetest.OneFile(t, "a", "b"))
	for _, where := range []string{layout.Dir(t), layout.File(t), imagetest.Saved(t, imagetest.OneFile(t, "a", "b")).File(t)} {
		found, done, err := Local(t.Context(), where, "")
		if err != nil || len(found) != 1 || found[0].Err != nil {
			t.Fatalf("%s: %v %v", where, found, err)
		}
		content(t, found[0].Image)
		if err := done(); err != nil {
			t.Error(err)
		}
	}
}

// TestAttack_BadStick: links, pipes and names on a stick lead nowhere.
func TestAttack_BadStick(t *testing.T) {
	files, layout, _ := stickFiles(t)
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside.tar")
	if err := os.WriteFile(outside, files["hello.tar"], 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, dir, below("layout", layout))
	for name := range layout {
		if b := layout[name]; len(b) > 60000 {
			os.Remove(filepath.Join(dir, "layout", name))
			if err := os.Symlink(outside, filepath.Join(dir, "layout", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	err := errors.Join(os.Symlink(outside, filepath.Join(dir, "link.tar")), os.Symlink("/", filepath.Join(dir, "root")),
		syscall.Mkfifo(filepath.Join(dir, "pipe.tar"), 0o644), os.MkdirAll(filepath.Join(dir, "a/b/c/d/e"), 0o755),
		os.WriteFile(filepath.Join(dir, "a/b/c/d/e/deep.tar"), files["hello.tar"], 0o644))
	if err != nil {
		t.Fatal(err)
	}
	found, done, err := Local(t.Context(), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	for _, f := range found {
		if f.Err == nil {
			t.Errorf("%s was taken", f.Path)
		}
	}
	if len(found) != 1 || found[0].Path != "layout" {
		t.Errorf("%v", found)
	}
	for _, where := range []string{filepath.Join(dir, "none"), "/dev/null", filepath.Join(dir, "pipe.tar"), t.TempDir()} {
		if _, _, err := Local(t.Context(), where, ""); err == nil {
			t.Errorf("%s was taken", where)
		}
	}
}
