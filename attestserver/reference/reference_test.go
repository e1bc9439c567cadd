package reference

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

func TestPutGetOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "references")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("text"), 10_000)
	if err := s.Put("ktext", "image.x86", data); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil { // as after a restart
		t.Fatal(err)
	}
	if got, err := s.Get("ktext", "image.x86"); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("Get: %d bytes, %v", len(got), err)
	}
	r, err := s.Open("ktext", "image.x86")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	part := make([]byte, 4)
	if _, err := r.ReadAt(part, r.Size()-4); err != nil && err != io.EOF || string(part) != "text" {
		t.Fatalf("ReadAt: %q, %v", part, err)
	}
	if keys, err := s.Keys("ktext"); err != nil || len(keys) != 1 || keys[0] != "image.x86" {
		t.Fatalf("Keys: %v, %v", keys, err)
	}
	if keys, err := s.Keys("none"); err != nil || len(keys) != 0 {
		t.Fatalf("Keys of nothing: %v, %v", keys, err)
	}
}

func TestEnrolledReferenceIsNeverReplaced(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutNew("cpu-class", "a", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := s.PutNew("cpu-class", "a", []byte("second")); !errors.Is(err, ErrExists) {
		t.Fatalf("replaced: %v", err)
	}
	if got, err := s.Get("cpu-class", "a"); err != nil || string(got) != "first" {
		t.Fatalf("is now %q, %v", got, err)
	}
}

// Who has the old one open goes on reading the old one.
func TestPutReplacesAtOnce(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put("k", "a", []byte("first")); err != nil {
		t.Fatal(err)
	}
	r, err := s.Open("k", "a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Put("k", "a", []byte("second, longer")); err != nil {
		t.Fatal(err)
	}
	old := make([]byte, r.Size())
	if _, err := r.ReadAt(old, 0); err != nil || string(old) != "first" {
		t.Errorf("the open one reads %q, %v", old, err)
	}
	if got, err := s.Get("k", "a"); err != nil || string(got) != "second, longer" {
		t.Errorf("now %q, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "k", ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestMissingIsErrNotExist(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("k", "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := s.Open("k", "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A CPU class comes from the PC: it must not become a path.
func TestNamesCannotLeaveTheDirectory(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", "a\x00b", ".hidden", "ä", strings.Repeat("a", 129)} {
		if err := s.Put("k", name, nil); !errors.Is(err, ErrName) {
			t.Errorf("key %q: %v", name, err)
		}
		if err := s.Put(name, "k", nil); !errors.Is(err, ErrName) {
			t.Errorf("kind %q: %v", name, err)
		}
	}
}
