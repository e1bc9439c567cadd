package pack

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// makeDeb builds a package out of files of this machine: path in it → file here, or
// "link:TARGET".
func makeDeb(t *testing.T, dir, name string, files map[string]string) string {
	t.Helper()
	tree := t.TempDir()
	put := func(p string) string {
		p = filepath.Join(tree, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if err := os.WriteFile(put("DEBIAN/control"), []byte("Package: "+name+"\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for to, from := range files {
		if target, ok := strings.CutPrefix(from, "link:"); ok {
			if err := os.Symlink(target, put(to)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(put(to), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, name+".deb")
	if b, err := exec.Command("dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, out).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb (package dpkg): %v\n%s", err, b)
	}
	return out
}

// libraries of a program here, by the path that the linker takes.
func libraries(t *testing.T, program string) map[string]string {
	t.Helper()
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatalf("ldd (package libc-bin): %v", err)
	}
	m := map[string]string{}
	for _, w := range strings.Fields(string(out)) {
		if filepath.IsAbs(w) {
			m[w] = w
		}
	}
	return m
}

func TestToolsRunAloneOutOfPackages(t *testing.T) {
	vendor, base := t.TempDir(), t.TempDir()
	makeDeb(t, vendor, "zksaapps", map[string]string{
		"/sbin/zkunlockifs": "/bin/bash", "/usr/bin/zklockifs": "/bin/bash", "/usr/local/bin/zkgrifs": "/bin/bash",
		"/etc/zk/secret.conf": "/etc/hostname", "/usr/lib/libzk.so": "link:/usr/lib/libzk.so.1", "/usr/lib/libzk.so.1": "/bin/true",
	})
	libc := makeDeb(t, base, "libc6", libraries(t, "/bin/bash"))
	files, err := Files(t.Context(), vendor, []string{libc}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	alone := t.TempDir()
	for n, b := range files {
		if strings.Contains(n, "secret") {
			t.Errorf("%s is no program and no library", n)
		}
		p := filepath.Join(alone, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range Tools {
		out, err := exec.Command("chroot", alone, "/"+tool, "-c", "echo $((6*7))").CombinedOutput()
		if err != nil || string(out) != "42\n" {
			t.Errorf("%s: %v: %s", tool, err, out)
		}
	}
}

func TestPackagesThatLackSomething(t *testing.T) {
	if _, err := Files(t.Context(), t.TempDir(), nil, t.TempDir()); err == nil {
		t.Error("an empty directory holds the vendor's tools")
	}
	vendor := t.TempDir()
	makeDeb(t, vendor, "zksaapps", map[string]string{"/sbin/zkunlockifs": "/bin/bash"})
	if _, err := Files(t.Context(), vendor, nil, t.TempDir()); !errors.Is(err, ErrNoTool) {
		t.Errorf("one tool of three: %v", err)
	}
	vendor = t.TempDir()
	makeDeb(t, vendor, "zksaapps", map[string]string{"/sbin/zkunlockifs": "/bin/bash", "/sbin/zklockifs": "/bin/bash", "/sbin/zkgrifs": "/bin/bash"})
	if _, err := Files(t.Context(), vendor, nil, t.TempDir()); err == nil || !strings.Contains(err.Error(), "/ld-") && !strings.Contains(err.Error(), "interpreter") {
		t.Errorf("tools without a C library: %v", err)
	}
}

func TestPackageCannotWriteOutside(t *testing.T) {
	vendor := t.TempDir()
	makeDeb(t, vendor, "zkevil", map[string]string{"/usr/lib/zkdir": "link:../../../../../tmp", "/usr/lib/zk.so": "link:/etc/shadow", "/sbin/zkunlockifs": "link:/etc/shadow",
		"/sbin/zklockifs": "/bin/bash", "/sbin/zkgrifs": "/bin/bash"})
	if files, err := Files(t.Context(), vendor, nil, t.TempDir()); err == nil {
		t.Errorf("%d files", len(files))
	}
}
