package pi

import (
	"archive/tar"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/images/cpio"
	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/images/squash"
)

// vendorPackage builds a package with an arm64 program of Debian's under the
// names of the vendor's tools, and of more: the real ones may not be passed on.
func vendorPackage(t *testing.T, b *builder, dir string, more ...string) {
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
	for _, name := range append(slices.Clone(zymbitTools), more...) {
		must(t, os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(tree, name), program, 0o755))
	}
	unit := filepath.Join(tree, "lib/systemd/system/zkifc.service")
	must(t, os.MkdirAll(filepath.Dir(unit), 0o755))
	must(t, os.WriteFile(unit, []byte("[Service]\nExecStart=/usr/bin/zkifc\n[Install]\nWantedBy=multi-user.target\n"), 0o644))
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
	var listed []spdxPackage
	must(t, b.sbomVendor(func(p spdxPackage, _ ...string) { listed = append(listed, p) }))
	if len(listed) != 1 || listed[0].Name != "zksaapps.deb" || len(listed[0].Checksums[0].Value) != 64 {
		t.Errorf("in the list of parts: %+v", listed)
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

// TestZymbitdComesWithTheLibrary: an image whose operator gave the vendor's library has
// zymbitd with its unit, user and drop-in; one with tools only, or nothing, has none.
func TestZymbitdComesWithTheLibrary(t *testing.T) {
	cache, err := debroot.DefaultCache()
	must(t, err)
	b, err := newBuilder(Options{Model: card.ModelPi4, Profile: card.ProfileDev, CacheDir: cache})
	must(t, err)
	b.packages, err = b.m.Packages(t.Context(), b.recipe, arch)
	must(t, err)
	units := func() (names []string) {
		must(t, b.eachUnit(func(name string, _ []byte) error {
			if strings.HasPrefix(name, zymbitUnits) {
				names = append(names, name)
			}
			return nil
		}))
		return names
	}
	const library = "usr/lib/aarch64-linux-gnu/" + zymbitLibrary
	for _, c := range []struct {
		more  []string
		units []string
	}{{nil, nil}, {[]string{library}, []string{"zymbitd.service", "zymbitd.sysusers"}}} {
		b.o.ZymbitDebs = t.TempDir()
		vendorPackage(t, b, b.o.ZymbitDebs, c.more...)
		b.vendor, err = b.readVendor(t.Context())
		must(t, err)
		if got := units(); !slices.Equal(got, c.units) {
			t.Errorf("%v: units %v", c.more, got)
		}
		if !slices.Equal(b.vendor.units, []string{"zkifc.service"}) {
			t.Errorf("the vendor's units: %v", b.vendor.units)
		}
		_, err = b.zymbitFiles(t.Context())
		must(t, err)
		tree := squash.NewTree(time.Unix(1700000000, 0).UTC())
		must(t, tree.Link("/lib", "usr/lib"))
		must(t, b.vendor.install(tree))
		for _, name := range append(slices.Clone(zymbitTools), append(c.more, "usr/lib/systemd/system/zkifc.service")...) {
			if tree.Get("/"+name) == nil {
				t.Errorf("%s is not in the system", name)
			}
		}
		must(t, debroot.Enable(tree, "zkifc.service"))
		// A package of the operator's cannot replace a file of the image.
		wantReason(t, b.vendor.install(tree), debroot.ReasonOptions)
	}
	// The one program that needs a loader gets the one that the image has.
	p := zymbitProgram
	must(t, b.dynamic(t.Context(), &p))
	f, err := elf.Open(p.path)
	must(t, err)
	defer f.Close()
	needs, err := f.ImportedLibraries()
	if err != nil || f.Machine != elf.EM_AARCH64 || !slices.Contains(needs, "libc.so.6") {
		t.Errorf("%s needs %v (%v), %v", p.path, needs, f.Machine, err)
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
