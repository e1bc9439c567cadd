package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"portcullis/images/deb"
	"portcullis/images/debroot"
)

func packed(t *testing.T, text string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestChangelogDate(t *testing.T) {
	got, err := changelogDate(packed(t, "linux (6.12.1-1) trixie; urgency=low\n\n  * New -- not this\n\n -- A B <a@b.example>  Thu, 12 Nov 2026 10:30:20 +0100\n\nlinux (6.12.0-1)\n\n -- A B <a@b.example>  Thu, 5 Nov 2026 10:30:20 +0100\n"))
	if err != nil || got != "Thu, 12 Nov 2026 10:30:20 +0100" {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"", "linux (6.12.1-1)\n", " -- A B <a@b.example>  $(reboot)\n"} {
		if got, err := changelogDate(packed(t, bad)); err == nil {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

func TestVersion(t *testing.T) {
	p := &debroot.Packages{Kernel: []deb.Package{{Name: "linux-base-x", Version: "1"}, {Name: "linux-image-6.12.117+deb13-amd64", Version: "6.12.117-1"}}}
	v, err := Version(p)
	if err != nil || v != "6.12.117-1" || Release(v) != "6.12.117-portcullis" {
		t.Errorf("%q %q %v", v, Release(v), err)
	}
	if v, err := Version(&debroot.Packages{}); err == nil {
		t.Errorf("%q of no package", v)
	}
}

// The key must follow everything that can change a byte.
func TestKey_FollowsEveryInput(t *testing.T) {
	lock := func(digest string) *deb.Lock {
		return &deb.Lock{Packages: []deb.Package{{Name: "make", Version: "4", SHA256: digest}}}
	}
	m, err := debroot.NewMaker(t.TempDir(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for name, in := range map[string]*inputs{
		"first":            {lock: lock("a"), fragment: []byte("x")},
		"another tool":     {lock: lock("b"), fragment: []byte("x")},
		"another fragment": {lock: lock("a"), fragment: []byte("y")},
	} {
		dir, _, err := m.Stage(t.Context(), stage, in.key(), func(string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[dir]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[dir] = name
	}
}

func TestRoom_KeepsPackagesInside(t *testing.T) {
	outside := t.TempDir()
	r, err := newRoom(filepath.Join(t.TempDir(), "room"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, kind byte, link, content string) error {
		return r.put(&tar.Header{Name: name, Typeflag: kind, Linkname: link, Mode: 0o4755}, strings.NewReader(content))
	}
	for _, err := range []error{
		put("/usr/lib", tar.TypeDir, "", ""), put("/lib", tar.TypeSymlink, "usr/lib", ""), put("/lib/modules", tar.TypeDir, "", ""),
		put("/lib/a", tar.TypeReg, "", "a"), put("/usr/bin/b", tar.TypeLink, "/usr/lib/a", ""), put("/out", tar.TypeSymlink, outside, ""),
		put("/null", tar.TypeChar, "", ""),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	st, err := os.Stat(filepath.Join(r.dir, "usr/bin/b"))
	if err != nil || st.Size() != 1 || st.Mode()&(os.ModeSetuid|0o777) != 0o755 {
		t.Errorf("%v %v", st, err)
	}
	if err := put("/out/x", tar.TypeReg, "", "x"); err == nil {
		t.Error("a package wrote through a link that leaves the room")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
	if err := r.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the room is still there")
	}
}

// The build runs as nobody and needs a place for temporary files: without it the
// kernel's own initramfs is not made.
func TestRoom_HasATemporaryDirectory(t *testing.T) {
	r, err := newRoom(filepath.Join(t.TempDir(), "room"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"usr/bin", "dev"} {
		if err := r.root.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.furnish(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(r.dir, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if owner := st.Sys().(*syscall.Stat_t).Uid; owner != nobody || st.Mode().Perm() != 0o755 {
		t.Errorf("owner %d, mode %v", owner, st.Mode())
	}
}

func TestLines(t *testing.T) {
	var got []string
	l := &lines{each: func(s string) { got = append(got, s) }}
	for _, part := range []string{"a\nb", "c\n", strings.Repeat("x", maxLine+1), "\n"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("%d %v", n, err)
		}
	}
	if !slices.Equal(got, []string{"a", "bc", ""}) {
		t.Errorf("%q", got)
	}
}

func TestLines_Why(t *testing.T) {
	l := &lines{}
	write := func(text string) {
		if _, err := l.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write("  CC      a.o\n  CC      b.o\n")
	if got := l.why(); got != "  CC      a.o;   CC      b.o" {
		t.Errorf("%q", got)
	}
	// What goes wrong first is told, not what other compilers write after it.
	write("a.c:1:1: error: no such thing\nmake[2]: *** [a.o] Error 1\n" + strings.Repeat("  CC      c.o\n", 20))
	if got := l.why(); got != "a.c:1:1: error: no such thing; make[2]: *** [a.o] Error 1" {
		t.Errorf("%q", got)
	}
}

func TestBuild_RefusesWhatItCannotDo(t *testing.T) {
	for _, o := range []Options{{Place: "relative"}, {Place: "/a/../b"}, {Jobs: -1}, {Nice: 20}} {
		var e *debroot.Error
		if _, err := Build(t.Context(), o); !errors.As(err, &e) || e.Reason != debroot.ReasonOptions {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
