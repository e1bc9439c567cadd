package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplaceLeavesOneWholeFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, durable := range []bool{true, false} {
		for _, text := range []string{"first, and long", "second", ""} {
			if err := Replace(path, []byte(text), durable); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil || string(b) != text {
				t.Errorf("%q, %v; want %q", b, err, text)
			}
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("%d files, %v", len(all), err)
	}
}

func TestFailedReplaceKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil { // a name that cannot be taken
		t.Fatal(err)
	}
	if err := Replace(path, []byte("new"), true); err == nil {
		t.Error("a directory was replaced")
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 || !all[0].IsDir() {
		t.Errorf("%v, %v", all, err)
	}
	if err := Replace(filepath.Join(dir, "none", "f"), nil, true); err == nil {
		t.Error("a directory that is not there")
	}
}
