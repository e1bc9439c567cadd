package pi

import (
	"archive/tar"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/cpio"
	"portcullis/images/deb"
	"portcullis/images/debroot"
)

// vendorPackage builds a package with an arm64 program of Debian's under the
// names of the vendor's tools: the real ones may not be passed on.
func vendorPackage(t *testing.T, b *builder, dir string) {
	t.Helper()
	var program []byte
	for _, p := range b.packages.Root {
		if p.Name != "kmod" { // it needs libraries besides libc
			continue
		}
		must(t, b.m.Fetch(t.Context(), b.packages))
		must(t, deb.Walk(t.Context(), b.m.Store.Path(p), func(h *tar.Header, r io.Reader) (err error) {
			if h.Name == "/usr/bin/kmod" {
				program, err = io.ReadAll(r)
			}
			return err
		}))
	}
	if program == nil {
		t.Fatal("no program to play the vendor's")
	}
	tree := t.TempDir()
	for _, name := range zymbitTools {
		must(t, os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(tree, name), program, 0o755))
	}
	must(t, os.Mkdir(filepath.Join(tree, "DEBIAN"), 0o755))
	control := "Package: zksaapps\nVersion: 1.0\nArchitecture: arm64\nMaintainer: nobody <nobody@example.invalid>\nDescription: test\n"
	must(t, os.WriteFile(filepath.Join(tree, "DEBIAN", "control"), []byte(control), 0o644))
	if out, err := exec.Command("dpkg-deb", "--build", "--root-owner-group", tree, filepath.Join(dir, "zksaapps.deb")).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb (package dpkg): %v: %s", err, out)
	}
}

func TestZymbitToolsComeWithTheirLibraries(t *testing.T) {
	cache, err := debroot.DefaultCache()
	must(t, err)
	b, err := newBuilder(Options{Model: card.ModelPi4, Profile: card.ProfileDev, CacheDir: cache})
	must(t, err)
	b.packages, err = b.m.Packages(t.Context(), b.recipe, arch)
	must(t, err)
	b.o.ZymbitDebs = t.TempDir()
	_, err = b.zymbitFiles(t.Context())
	wantReason(t, err, debroot.ReasonMissing) // no package in the directory
	vendorPackage(t, b, b.o.ZymbitDebs)
	extra, err := b.zymbitFiles(t.Context())
	must(t, err)
	links := map[string]string{}
	sizes := map[string]int{}
	for _, e := range extra {
		links[e.Path], sizes[e.Path] = e.Link, len(e.Data)
	}
	for _, name := range []string{"usr/sbin/zkunlockifs", "usr/lib/aarch64-linux-gnu/libc.so.6", "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"} {
		if sizes[name] == 0 {
			t.Errorf("%s is not there", name)
		}
	}
	if links["lib"] != "usr/lib" || links["sbin"] != "usr/sbin" {
		t.Errorf("links: lib → %q, sbin → %q", links["lib"], links["sbin"])
	}
	if !strings.Contains(strings.Join(keysOf(sizes), " "), "libcrypto.so.3") {
		t.Error("a library of the tool's own is not there")
	}
	files := merged(map[string][]byte{debroot.InitrdModules: []byte("/lib/modules/a.ko\n"), "lib/modules/a.ko": []byte("module")})
	archive, err := debroot.Pack([]byte("init"), files, 1, extra...)
	must(t, err)
	// The module is found where the list says, through the link.
	if m, err := debroot.ReadInitrd(cpio.Zstd(archive), "usr/lib/modules/a.ko"); err != nil || string(m) != "module" {
		t.Errorf("%q %v", m, err)
	}
}

func keysOf(m map[string]int) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

// A package cannot write outside the tree that it is unpacked into.
func TestPackageCannotLeaveItsTree(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(filepath.Join(dir))
	must(t, err)
	defer root.Close()
	must(t, putLink(root, "/lib", "/etc"))
	if err := putFile(root, "/lib/portcullis-test", strings.NewReader("x")); err == nil {
		t.Error("a file went through a link to outside")
	}
}
