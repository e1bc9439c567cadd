package zymbit

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// tree copies a program of this machine and what ldd says of it into a directory, the
// libraries behind links as in a real root file system.
func tree(t *testing.T, program string) string {
	t.Helper()
	root := t.TempDir()
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatalf("ldd (package libc-bin): %v", err)
	}
	put := func(from, to string) {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(root, "usr", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(program, "sbin/zkunlockifs")
	for _, w := range strings.Fields(string(out)) {
		if !filepath.IsAbs(w) {
			continue
		}
		real, err := filepath.EvalSymlinks(w)
		if err != nil {
			t.Fatal(err)
		}
		put(real, filepath.Join("usr", strings.TrimPrefix(w, "/usr")))
	}
	return root
}

func TestClosureRunsAlone(t *testing.T) {
	root := tree(t, "/bin/bash")
	files, err := Closure(os.DirFS(root).(LinkFS), []string{"/sbin/zkunlockifs"})
	if err != nil {
		t.Fatal(err)
	}
	alone := t.TempDir()
	var names []string
	for _, f := range files {
		names = append(names, f.Path)
		p := filepath.Join(alone, f.Path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if f.Link != "" {
			err = os.Symlink(f.Link, p)
		} else {
			err = os.WriteFile(p, f.Data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// The proof: the program starts in a root that holds the closure and nothing else.
	out, err := exec.Command("chroot", alone, "/sbin/zkunlockifs", "-c", "echo $((6*7))").CombinedOutput()
	if err != nil || string(out) != "42\n" {
		t.Errorf("%v: %s\n%s", err, out, strings.Join(names, "\n"))
	}
	again, err := Closure(os.DirFS(root).(LinkFS), []string{"sbin/zkunlockifs"})
	if err != nil || len(again) != len(files) {
		t.Errorf("%d files, then %d, %v", len(files), len(again), err)
	}
}

func TestClosureRefusals(t *testing.T) {
	root := tree(t, "/bin/bash")
	sys := os.DirFS(root).(LinkFS)
	if _, err := Closure(sys, []string{"/sbin/none"}); !errors.Is(err, ErrMissing) {
		t.Errorf("a program that is not there: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "sbin/script"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Closure(sys, []string{"/sbin/script"}); err == nil {
		t.Error("a script has no libraries to pack: its interpreter would be missing")
	}
	for _, l := range [][2]string{{"a", "b"}, {"b", "a"}, {"deep", "deep/er"}, {"out", "../../../etc"}} {
		if err := os.Symlink(l[1], filepath.Join(root, l[0])); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"deep/x", "out/x"} {
		if _, err := Closure(sys, []string{p}); err == nil {
			t.Errorf("%s: accepted", p)
		}
	}
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*/libc.so.6"))
	if err != nil || len(libs) == 0 {
		t.Fatalf("%v, %v", libs, err)
	}
	if err := os.Remove(libs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := Closure(sys, []string{"/sbin/zkunlockifs"}); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "libc.so.6") {
		t.Errorf("a library that is not there: %v", err)
	}
}

func FuzzClosure(f *testing.F) {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:min(len(b), 4096)])
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := fstest.MapFS{"sbin/p": {Data: b, Mode: 0o755}, "lib": {Data: []byte("usr/lib"), Mode: fs.ModeSymlink | 0o777}}
		files, err := Closure(m, []string{"/sbin/p"})
		if err == nil && len(files) == 0 {
			t.Error("accepted and empty")
		}
	})
}
