package reference

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/protocol"
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

// What is written piece by piece is read while it is written, and is there as a whole or not
// at all.
func TestWriteIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	write := func(last error) error {
		return s.Write("k", "a", func(d protocol.Draft) error {
			_, err := d.WriteAt([]byte("tail"), 6)
			if _, e := d.WriteAt([]byte("head, "), 0); err == nil {
				err = e
			}
			b := make([]byte, 10)
			if _, e := d.ReadAt(b, 0); err != nil || e != nil || string(b) != "head, tail" {
				t.Errorf("the draft holds %q: %v, %v", b, err, e)
			}
			return last
		})
	}
	refused := errors.New("refused")
	if err := write(refused); !errors.Is(err, refused) {
		t.Error(err)
	}
	if _, err := s.Get("k", "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was refused is there: %v", err)
	}
	if err := write(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get("k", "a"); err != nil || string(got) != "head, tail" {
		t.Errorf("%q, %v", got, err)
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

// What is remembered is never older than the file: one that was written, replaced or
// removed, by us or by somebody else, shows at once, and nobody can change what is kept.
func TestNothingOldIsRemembered(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(s.dir, "tpm", "a")
	has := func(want string) {
		t.Helper()
		for range 3 {
			got, err := s.Get("tpm", "a")
			if err != nil || string(got) != want {
				t.Fatalf("%q, %v; want %q", got, err, want)
			}
			got[0] = 'x'
		}
	}
	for _, v := range []string{"first", "secnd", "third"} {
		if err := s.Put("tpm", "a", []byte(v)); err != nil {
			t.Fatal(err)
		}
		has(v)
	}
	time.Sleep(20 * time.Millisecond) // a clock tick of the file system
	if err := os.WriteFile(at, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	has("other")
	if err := os.WriteFile(at+".new", []byte("moved"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at+".new", at); err != nil {
		t.Fatal(err)
	}
	has("moved")
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("tpm", "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a removed reference is read: %v", err)
	}
	if err := s.PutNew("tpm", "a", []byte("again")); err != nil {
		t.Fatal(err)
	}
	has("again")
	for i := range 3 * maxCached {
		if err := s.Put("tpm", "b"+strconv.Itoa(i), []byte("b")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get("tpm", "b"+strconv.Itoa(i)); err != nil || len(s.small.of) > maxCached {
			t.Fatal(err, len(s.small.of))
		}
	}
}
